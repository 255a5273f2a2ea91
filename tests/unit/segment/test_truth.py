"""The composites with known masks, and the benchmark that scores masks with them."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.measure import ROOT
from benchmarks.segment_quality import METHODS, bootstrap, box_of, find_pairs, judge, read_pair, report
from psys.errors import PsysError
from tests.support.images import Image

TRUTH = ROOT / "benchmarks" / "truth"


def folder_of(path: Path, **masks: Image) -> Path:
    """Write one image and the masks to `path`."""
    for part in ("images", "masks"):
        (path / part / "cats").mkdir(parents=True)
    cv2.imwrite(str(path / "images" / "cats" / "one.png"), np.full((20, 30, 3), 90, np.uint8))
    for name, mask in masks.items():
        cv2.imwrite(str(path / "masks" / "cats" / f"{name}.png"), mask)
    return path


@pytest.mark.parametrize(("kind", "count"), [("photographs", 50), ("cifar", 100)])
def test_every_composite_has_a_mask(kind: str, count: int) -> None:
    pairs = find_pairs(TRUTH / kind)

    assert len(pairs) == count
    for _, image, mask in pairs[::10]:
        assert 0.03 < read_pair(image, mask)[1].mean() < 0.7


def test_auto_is_better_than_the_rectangle_on_small_composites() -> None:
    methods = ["auto", "plain rectangle", "centre box"]
    rows = [
        {"name": name, **judge(*read_pair(image, mask), methods)}
        for name, image, mask in find_pairs(TRUTH / "cifar")[::10]
    ]
    lead = bootstrap(rows)

    assert lead["low"] > 0.05
    assert lead["low"] < lead["mean"] < lead["high"]
    assert [line.split(" | ")[0] for line in report(rows, methods)[3:]] == [f"| {name}" for name in methods]


def test_scores_of_the_whole_image_and_the_true_box(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 10:25] = 255
    (pair,) = find_pairs(folder_of(tmp_path, one=mask))
    image, truth = read_pair(*pair[1:])

    assert pair[0] == "cats/one"
    assert box_of(truth) == (10, 5, 25, 15)
    assert judge(image, truth, ["whole image"])["whole image"]["iou"] == 0.25
    assert METHODS["centre box"](image, truth).sum() == 10 * 14
    assert "cats" in report([{"name": "cats/one", **judge(image, truth, ["whole image"])}], ["whole image"])[-1]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, r"no mask .*one\.png"),
        ({"one": np.full((30, 20), 255, np.uint8)}, "sizes must be equal"),
        ({"one": np.zeros((20, 30), np.uint8)}, "all black"),
    ],
)
def test_invalid_truth_folder_is_rejected(tmp_path: Path, masks: dict[str, Image], message: str) -> None:
    folder = folder_of(tmp_path, **masks)

    with pytest.raises(PsysError, match=message):
        [read_pair(image, mask) for _, image, mask in find_pairs(folder)]


def test_folder_without_images_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"no folder .*images"):
        find_pairs(tmp_path)

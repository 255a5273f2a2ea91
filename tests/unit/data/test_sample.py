import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from psys.data.cifar import CLASSES, NAME, ORIGIN
from psys.data.dataset import Dataset, write_dataset
from psys.data.draw_sample import draw
from psys.data.sample import FOLDER, read_sample
from psys.errors import PsysError
from tests.support.images import pixels_of


def test_sample_is_balanced_and_small() -> None:
    sample = read_sample()

    assert pixels_of(sample.train).shape == (2000, 32, 32, 3)
    assert pixels_of(sample.test).shape == (500, 32, 32, 3)
    assert np.bincount(sample.train.labels).tolist() == [200] * 10
    assert np.bincount(sample.test.labels).tolist() == [50] * 10
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 8_000_000


def test_sample_has_cifar_10_colours_and_disjoint_splits() -> None:
    sample = read_sample()

    np.testing.assert_allclose(pixels_of(sample.train).mean((0, 1, 2)) / 255, (0.4914, 0.4822, 0.4465), atol=0.01)
    train = {image.tobytes() for image in pixels_of(sample.train)}
    assert len(train) == 2000
    assert not train & {image.tobytes() for image in pixels_of(sample.test)}


def test_changed_pixel_is_detected(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "sample")
    sheet = cv2.imread(str(folder / "test.png"))
    assert sheet is not None
    sheet[100, 100] ^= 1
    cv2.imwrite(str(folder / "test.png"), sheet)

    with pytest.raises(PsysError, match=r"damaged.*test\.png does not match the hash"):
        read_sample(folder)


def test_changed_label_is_detected(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "sample")
    metadata = json.loads((folder / "labels.json").read_text())
    metadata["train"]["labels"][0] = 9
    (folder / "labels.json").write_text(json.dumps(metadata))

    with pytest.raises(PsysError, match=r"train\.png does not match the hash"):
        read_sample(folder)


def test_drawn_sample_is_read_back_with_its_indices(tmp_path: Path) -> None:
    sample = read_sample()
    dataset = Dataset(NAME, ORIGIN, tmp_path, CLASSES, sample.train, sample.test)
    write_dataset(dataset, tmp_path / "dataset")
    (tmp_path / "drawn").mkdir()

    draw(tmp_path / "dataset", tmp_path / "drawn")

    again = read_sample(tmp_path / "drawn")
    indices = json.loads((tmp_path / "drawn" / "labels.json").read_text())["train"]["indices"]
    np.testing.assert_array_equal(again.train.images, pixels_of(sample.train)[indices])
    np.testing.assert_array_equal(again.train.labels, sample.train.labels[indices])

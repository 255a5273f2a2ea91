import json
import shutil

import cv2
import numpy as np
import pytest

from psys.data.cifar import CLASSES, NAME, ORIGIN
from psys.data.dataset import Dataset, DatasetSplit, write_dataset
from psys.data.draw_sample import draw
from psys.data.sample import FOLDER, read_sample
from psys.errors import PsysError


def test_the_sample_is_balanced_and_small():
    sample = read_sample()

    assert sample.train.images.shape == (2000, 32, 32, 3)
    assert sample.test.images.shape == (500, 32, 32, 3)
    assert np.bincount(sample.train.labels).tolist() == [200] * 10
    assert np.bincount(sample.test.labels).tolist() == [50] * 10
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 8_000_000


def test_the_sample_looks_like_cifar_10_and_no_image_is_in_both_splits():
    sample = read_sample()

    np.testing.assert_allclose(sample.train.images.mean((0, 1, 2)) / 255, (0.4914, 0.4822, 0.4465), atol=0.01)
    train = {image.tobytes() for image in sample.train.images}
    assert len(train) == 2000
    assert not train & {image.tobytes() for image in sample.test.images}


def test_a_changed_pixel_is_noticed(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "sample")
    sheet = cv2.imread(str(folder / "test.png"))
    sheet[100, 100] ^= 1
    cv2.imwrite(str(folder / "test.png"), sheet)

    with pytest.raises(PsysError, match=r"damaged.*test\.png does not match the hash"):
        read_sample(folder)


def test_a_changed_label_is_noticed(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "sample")
    about = json.loads((folder / "labels.json").read_text())
    about["train"]["labels"][0] = 9
    (folder / "labels.json").write_text(json.dumps(about))

    with pytest.raises(PsysError, match=r"train\.png does not match the hash"):
        read_sample(folder)


def test_a_sample_that_is_drawn_is_read_back_and_its_indices_tell_where_each_image_came_from(tmp_path):
    sample = read_sample()
    whole = Dataset(NAME, ORIGIN, tmp_path, CLASSES, sample.train, DatasetSplit(sample.test.images, sample.test.labels))
    write_dataset(whole, tmp_path / "whole")
    (tmp_path / "drawn").mkdir()

    draw(tmp_path / "whole", tmp_path / "drawn")

    again = read_sample(tmp_path / "drawn")
    indices = json.loads((tmp_path / "drawn" / "labels.json").read_text())["train"]["indices"]
    np.testing.assert_array_equal(again.train.images, sample.train.images[indices])
    np.testing.assert_array_equal(again.train.labels, sample.train.labels[indices])

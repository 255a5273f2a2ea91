from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from psys.data.dataset import DatasetSplit
from psys.data.sample import read_sample
from tests.support.cifar import BATCHES, PER_BATCH, binary_batch, python_batch
from tests.support.images import pixels_of


@pytest.fixture(scope="session")
def sixty() -> DatasetSplit:
    """60 real images in random order, with equally many of each class in the first 50 (training) and last 10 (test)."""
    train = read_sample().train
    of_class = np.stack([np.flatnonzero(train.labels == label)[:6] for label in range(10)])
    generator = np.random.default_rng(7)
    rows = np.concatenate([generator.permutation(of_class[:, :5].ravel()), generator.permutation(of_class[:, 5])])
    assert len(rows) == 6 * PER_BATCH
    return DatasetSplit(pixels_of(train)[rows], train.labels[rows])


@pytest.fixture
def cifar_folder(tmp_path: Path, sixty: DatasetSplit) -> Callable[[str], Path]:
    """A function that writes the folder cifar-10-batches-py or -bin with the 60 images into tmp_path."""

    def make(form: str) -> Path:
        folder = tmp_path / f"cifar-10-batches-{form}"
        folder.mkdir()
        for number, name in enumerate(BATCHES):
            rows = slice(number * PER_BATCH, (number + 1) * PER_BATCH)
            write, suffix = (python_batch, "") if form == "py" else (binary_batch, ".bin")
            (folder / (name + suffix)).write_bytes(write(pixels_of(sixty)[rows], sixty.labels[rows]))
        return folder

    return make

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from psys.data.dataset import DatasetSplit
from psys.data.sample import read_sample
from tests.support.cifar import BATCHES, PER_BATCH, binary_batch, python_batch


@pytest.fixture(scope="session")
def sixty() -> DatasetSplit:
    """60 real images in mixed order: the first 50, for training, and the last 10 have as many of every class."""
    train = read_sample().train
    of_class = np.stack([np.flatnonzero(train.labels == label)[:6] for label in range(10)])
    generator = np.random.default_rng(7)
    rows = np.concatenate([generator.permutation(of_class[:, :5].ravel()), generator.permutation(of_class[:, 5])])
    assert len(rows) == 6 * PER_BATCH
    return DatasetSplit(train.images[rows], train.labels[rows])


@pytest.fixture
def cifar_folder(tmp_path: Path, sixty: DatasetSplit) -> Callable[[str], Path]:
    """Makes tmp_path/<cifar-10-batches-py or -bin> with the sixty images."""

    def make(layout: str) -> Path:
        folder = tmp_path / f"cifar-10-batches-{layout}"
        folder.mkdir()
        for number, name in enumerate(BATCHES):
            rows = slice(number * PER_BATCH, (number + 1) * PER_BATCH)
            write, suffix = (python_batch, "") if layout == "py" else (binary_batch, ".bin")
            (folder / (name + suffix)).write_bytes(write(sixty.images[rows], sixty.labels[rows]))
        return folder

    return make

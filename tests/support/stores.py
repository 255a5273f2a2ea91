"""A small prepared store of real images, made in this process: no Ray, a few seconds."""

from pathlib import Path

import numpy as np

from psys.data.dataset import DatasetSplit
from psys.data.sample import read_sample
from psys.data.store import PreparedStore, StoreLayout
from psys.data.writer import StoreWriter
from psys.segment.quality import QUALITY, GateConfig, is_usable
from psys.segment.task import ImageTask, Recipe, prepare_images


def write_small_store(
    folder: Path, train_per_class: int = 16, test_per_class: int = 4, layout: StoreLayout = "dense"
) -> PreparedStore:
    """Write some of every class of the embedded sample, with masks, to `folder`."""
    sample = read_sample()
    folder.mkdir(parents=True)
    writer = StoreWriter(folder, ["train", "test"], (32, 32), QUALITY, layout)
    for name, split, count in (("train", sample.train, train_per_class), ("test", sample.test, test_per_class)):
        images, labels = _some_of_each_class(split, count)
        done = prepare_images(ImageTask(images), Recipe(32, layout))
        writer.append(name, done.images, labels, done.masks, done.quality, is_usable(done.quality, GateConfig()))
    writer.close(sample.classes, {"train": {}, "test": {}}, source="a part of the sample")
    return PreparedStore.open(folder)


def _some_of_each_class(split: DatasetSplit, count: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.concatenate([np.flatnonzero(split.labels == label)[:count] for label in np.unique(split.labels)])
    assert isinstance(split.images, np.ndarray)
    return split.images[rows], split.labels[rows]

"""Write a small prepared store of real images in this process, without Ray."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from psys.data.dataset import DatasetSplit
from psys.data.sample import read_sample
from psys.data.store import PreparedStore, StoreLayout
from psys.data.writer import StoreWriter
from psys.segment.grabcut import SegmentConfig
from psys.segment.quality import QUALITY, GateConfig, is_usable
from psys.segment.task import ImageTask, Recipe, prepare_images
from tests.support.images import Image, pixels_of


def write_small_store(
    folder: Path, train_per_class: int = 16, test_per_class: int = 4, layout: StoreLayout = "dense"
) -> PreparedStore:
    """Write a store of the sample's first images of every class to `folder`, with quickly computed masks."""
    sample = read_sample()
    folder.mkdir(parents=True)
    writer = StoreWriter(folder, ["train", "test"], (32, 32), QUALITY, layout)
    for name, split, count in (("train", sample.train, train_per_class), ("test", sample.test, test_per_class)):
        images, labels = _first_of_each_class(split, count)
        prepared = prepare_images(ImageTask(images), Recipe(32, layout, SegmentConfig(strategy="seeded", scale=0.5)))
        usable = is_usable(prepared.quality, GateConfig())
        writer.append(name, prepared.images, labels, prepared.masks, prepared.quality, usable)
    writer.close(sample.classes, {"train": {}, "test": {}}, source="a part of the sample")
    return PreparedStore.open(folder)


def _first_of_each_class(split: DatasetSplit, count: int) -> tuple[Image, NDArray[np.int64]]:
    rows = np.concatenate([np.flatnonzero(split.labels == label)[:count] for label in np.unique(split.labels)])
    return pixels_of(split)[rows], split.labels[rows]

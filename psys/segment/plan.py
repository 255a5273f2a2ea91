"""Divide a data set into tasks; a task's key is the hash of everything that determines its result."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from psys.data.dataset import Dataset, release_memory
from psys.data.reference import Member, Reference
from psys.errors import PsysError
from psys.segment.grabcut import Box
from psys.segment.task import ImageTask, Recipe

TASK_IMAGES = 8, 64  # fewest and most; small data sets have small tasks, so that every actor gets some
TASK_BYTES = 8 * 2**20  # of pixels, before and after preparation


class PlannedTask(NamedTuple):
    """A task that is not loaded yet: consecutive rows of a split."""

    split: str
    first: int
    rows: int
    key: str


class Plan:
    """The tasks of a data set, in its order; the plan of a million images takes a few megabytes."""

    def __init__(self, dataset: Dataset, boxes: dict[str, Box], recipe: Recipe, algorithm: str) -> None:
        """boxes: by file path relative to the data set's root; algorithm: identifies the code's version in the keys.

        Raises PsysError if there are boxes but none is of an image in the data set.
        """
        self.dataset, self.recipe = dataset, recipe
        self.images = sum(len(split.labels) for split in dataset.splits.values())
        self.boxed = 0
        self._boxes = boxes
        made_by = [algorithm, recipe.size, recipe.layout, recipe.segment.model_dump()]
        self._made_by = hashlib.sha256(json.dumps(made_by).encode())
        self._tasks = [task for name in dataset.splits for task in self._divide(name)]
        if boxes and not self.boxed:
            example = next(iter(boxes))
            raise PsysError(f"none of the files with boxes ({example!r:.100}, ...) is an image under {dataset.root}")

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[PlannedTask]:
        return iter(self._tasks)

    def load(self, planned: PlannedTask) -> ImageTask:
        """The task with its images or references, to be sent to an actor."""
        rows = slice(planned.first, planned.first + planned.rows)
        images = self.dataset.splits[planned.split].images[rows]
        if isinstance(images, np.ndarray):
            pixels = np.array(images)
            release_memory(images)
            return ImageTask(pixels)
        return ImageTask(images, self._boxes_of(images))

    def name(self, planned: PlannedTask, row: int) -> str:
        """The name of an image of a task: its path relative to the data set's root, or its split and row."""
        image = self.dataset.splits[planned.split].images[planned.first + row]
        return f"{planned.split} image {planned.first + row}" if isinstance(image, np.ndarray) else self._name(image)

    def _name(self, image: Reference) -> str:
        root = self.dataset.root
        if isinstance(image, Member):
            return str(image._replace(path=image.path.relative_to(root)))
        return image.relative_to(root).as_posix()

    def _boxes_of(self, images: tuple[Reference, ...]) -> tuple[Box | None, ...]:
        boxes = tuple(self._boxes.get(self._name(image)) for image in images) if self._boxes else ()
        return boxes if any(boxes) else ()

    def _divide(self, name: str) -> Iterator[PlannedTask]:
        images = self.dataset.splits[name].images
        bytes_each = 3 * self.recipe.size**2
        if isinstance(images, np.ndarray):
            bytes_each = max(bytes_each, int(np.prod(images.shape[1:])))
        fewest, most = TASK_IMAGES
        step = max(1, min(TASK_BYTES // bytes_each, max(fewest, min(most, self.images // most))))
        marks: Iterator[str] = iter(()) if isinstance(images, np.ndarray) else images.marks(self.dataset.root)
        for first in range(0, len(images), step):
            rows = slice(first, min(first + step, len(images)))
            key = self._made_by.copy()
            if isinstance(images, np.ndarray):
                key.update(str(images.shape).encode() + images[rows].tobytes())
                release_memory(images)
            else:
                boxes = self._boxes_of(images[rows])
                self.boxed += len(boxes) - boxes.count(None)
                content = [*itertools.islice(marks, rows.stop - first), repr(boxes)]
                key.update("\n".join(content).encode(errors="surrogateescape"))  # a file name may not be UTF-8
            yield PlannedTask(name, first, rows.stop - first, key.hexdigest()[:40])

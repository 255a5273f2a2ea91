"""How a data set is cut into shards, and the key of each: the hash of all that decides what becomes of it."""

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

SHARD_IMAGES = 8, 64  # fewer in a small set, so that there are enough for every actor
SHARD_BYTES = 8 * 2**20  # of pixels, as they come and as they are stored


class PlannedTask(NamedTuple):
    """Consecutive rows of a split."""

    split: str
    first: int
    rows: int
    key: str


class Plan:
    """The shards of a data set, in its order; a million images take a few megabytes."""

    def __init__(self, dataset: Dataset, boxes: dict[str, Box], recipe: Recipe, algorithm: str) -> None:
        """`boxes` by file name under the data set's root; `algorithm` names all that no setting tells.

        Raises PsysError for boxes of which none belongs to an image.
        """
        self.dataset, self.recipe = dataset, recipe
        self.images = sum(len(split.labels) for split in dataset.splits.values())
        self.boxed = 0
        self._boxes = boxes
        made_by = [algorithm, recipe.size, recipe.layout, recipe.segment.model_dump()]
        self._made_by = hashlib.sha256(json.dumps(made_by).encode())
        self._pieces = [piece for name in dataset.splits for piece in self._cut(name)]
        if boxes and not self.boxed:
            example = next(iter(boxes))
            raise PsysError(f"none of the files with boxes ({example!r:.100}, ...) is an image under {dataset.root}")

    def __len__(self) -> int:
        return len(self._pieces)

    def __iter__(self) -> Iterator[PlannedTask]:
        return iter(self._pieces)

    def shard(self, piece: PlannedTask) -> ImageTask:
        """What an actor needs of a piece."""
        rows = slice(piece.first, piece.first + piece.rows)
        images = self.dataset.splits[piece.split].images[rows]
        if isinstance(images, np.ndarray):
            pixels = np.array(images)
            release_memory(images)
            return ImageTask(pixels)
        return ImageTask(images, self._boxes_of(images))

    def name(self, piece: PlannedTask, row: int) -> str:
        """What an image of a piece is called."""
        image = self.dataset.splits[piece.split].images[piece.first + row]
        return f"{piece.split} image {piece.first + row}" if isinstance(image, np.ndarray) else self._name(image)

    def _name(self, image: Reference) -> str:
        root = self.dataset.root
        if isinstance(image, Member):
            return str(image._replace(path=image.path.relative_to(root)))
        return image.relative_to(root).as_posix()

    def _boxes_of(self, images: tuple[Reference, ...]) -> tuple[Box | None, ...]:
        boxes = tuple(self._boxes.get(self._name(image)) for image in images) if self._boxes else ()
        return boxes if any(boxes) else ()

    def _cut(self, name: str) -> Iterator[PlannedTask]:
        images = self.dataset.splits[name].images
        bytes_each = 3 * self.recipe.size**2
        if isinstance(images, np.ndarray):
            bytes_each = max(bytes_each, int(np.prod(images.shape[1:])))
        fewest, most = SHARD_IMAGES
        step = max(1, min(SHARD_BYTES // bytes_each, max(fewest, min(most, self.images // most))))
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
                key.update("\n".join(content).encode(errors="surrogateescape"))  # a file's name need not be UTF-8
            yield PlannedTask(name, first, rows.stop - first, key.hexdigest()[:40])

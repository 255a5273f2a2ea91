"""The work of one actor call: decode a few images, segment them, resize them and measure their masks."""

import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from psys.data.encoded import encode_image, encode_mask
from psys.data.read import read_encoded
from psys.data.reference import Reference
from psys.data.store import StoreLayout
from psys.segment.boxes import visible_part
from psys.segment.decode import decode_upright
from psys.segment.grabcut import Box, SegmentConfig, segment
from psys.segment.quality import QUALITY, measure


@dataclass(frozen=True)
class ImageTask:
    """Consecutive images of a split, sent to an actor: pixels, or references to files that the actor can read."""

    images: NDArray[np.uint8] | tuple[Reference, ...]  # (B, H, W, 3) RGB, or B references
    boxes: tuple[Box | None, ...] = ()  # B, in pixels of the stored images; empty if no box is known

    def __len__(self) -> int:
        return len(self.images)

    def row(self, index: int) -> "ImageTask":
        """A task of one of the images."""
        rows = slice(index, index + 1)
        return ImageTask(self.images[rows], self.boxes[rows])


class Failure(NamedTuple):
    """An image that could not be prepared."""

    row: int  # of the task
    reason: str
    permanent: bool = True  # False: another attempt may succeed


@dataclass(frozen=True)
class Recipe:
    """How images are prepared for a store.

    dense: the centred square, resized to `size` pixels a side; encoded: the whole image, its shorter side reduced to at
    most `size` pixels.
    """

    size: int
    layout: StoreLayout = "dense"
    segment: SegmentConfig = field(default_factory=SegmentConfig)


@dataclass(frozen=True)
class Prepared:
    """The result of a task: K <= B rows for the store in the task's order, and the failures."""

    rows: NDArray[np.int64]  # (K,), of the task
    images: NDArray[np.uint8] | tuple[bytes, ...]  # (K, size, size, 3), or K encoded ones
    masks: NDArray[np.bool_] | tuple[bytes, ...]  # (K, size, size), or K encoded ones
    quality: NDArray[np.float32]  # (K, Q), named by QUALITY
    failures: tuple[Failure, ...] = ()

    @classmethod
    def failed(cls, recipe: Recipe, failures: tuple[Failure, ...]) -> Self:
        """A result that has only failures."""
        rows, quality = np.zeros(0, np.int64), np.zeros((0, len(QUALITY)), np.float32)
        if recipe.layout == "encoded":
            return cls(rows, (), (), quality, failures)
        square = (recipe.size, recipe.size)
        return cls(rows, np.zeros((0, *square, 3), np.uint8), np.zeros((0, *square), np.bool_), quality, failures)

    @classmethod
    def joined(cls, parts: dict[int, Self]) -> Self:
        """Join parts of a task, given by each part's first row."""
        if len(parts) == 1:
            return next(iter(parts.values()))
        ordered = sorted(parts.items())
        return cls(
            np.concatenate([first + part.rows for first, part in ordered]),
            _concatenated([part.images for _, part in ordered]),
            _concatenated([part.masks for _, part in ordered]),
            _concatenated([part.quality for _, part in ordered]),
            tuple(failure._replace(row=first + failure.row) for first, part in ordered for failure in part.failures),
        )


def _concatenated(columns: list[Any]) -> Any:
    return tuple(itertools.chain(*columns)) if isinstance(columns[0], tuple) else np.concatenate(columns)


def prepare_images(task: ImageTask, recipe: Recipe) -> Prepared:
    """Decode, segment and resize every image of a task; an image's errors become failures in the result."""
    images: list[Any] = []
    masks: list[Any] = []
    rows, quality, failures = [], [], []
    for row, item in enumerate(task.images):
        box = task.boxes[row] if task.boxes else None
        try:
            image, mask = _prepare(item, box, recipe)
            figures = measure(image, mask)
            kept: tuple[Any, Any] = image, mask
            if recipe.layout == "encoded":
                kept = encode_image(image), encode_mask(mask)
        except (ValueError, OSError, cv2.error, MemoryError) as error:  # OSError: raised by Pillow
            reason = " ".join(str(error).split()) or type(error).__name__
            transient = isinstance(error, MemoryError) or isinstance(error.__cause__, OSError)
            failures.append(Failure(row, reason, permanent=not transient))
            continue
        rows.append(row)
        quality.append(figures)
        images.append(kept[0])
        masks.append(kept[1])
    if not rows:
        return Prepared.failed(recipe, tuple(failures))
    columns = np.array(quality, np.float32), tuple(failures)
    if recipe.layout == "encoded":
        return Prepared(np.array(rows), tuple(images), tuple(masks), *columns)
    return Prepared(np.array(rows), np.array(images), np.array(masks), *columns)


def _prepare(
    item: NDArray[np.uint8] | Reference, box: Box | None, recipe: Recipe
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    image, box = (item, box) if isinstance(item, np.ndarray) else decode_upright(read_encoded(item), box)
    height, width = image.shape[:2]
    whole = Box(0, 0, width, height)
    if box is not None and visible_part(box, whole) is None:
        raise ValueError(f"its box {tuple(box)} lies outside its {width} x {height} pixels")
    window = center_square(width, height) if recipe.layout == "dense" else whole
    image = image[window.top : window.bottom, window.left : window.right]
    pixels = _resize(image, recipe)
    if box is not None and (box := visible_part(box, window)) is None:
        return pixels, np.zeros(pixels.shape[:2], np.bool_)  # the object was cropped away
    return pixels, _resize(segment(image, recipe.segment, box).astype(np.uint8) * 255, recipe) > 127


def center_square(width: int, height: int) -> Box:
    """The largest centred square of an image."""
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return Box(left, top, left + side, top + side)


def _resize(image: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.uint8]:
    short_side = min(image.shape[:2])
    if short_side == recipe.size or (short_side < recipe.size and recipe.layout == "encoded"):
        return image
    height, width = (round(side * recipe.size / short_side) for side in image.shape[:2])
    interpolation = cv2.INTER_AREA if short_side > recipe.size else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=interpolation).astype(np.uint8, copy=False)

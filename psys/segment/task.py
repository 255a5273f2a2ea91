"""What one actor does with one shard: decode, bring to the store's size, segment, measure."""

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
from psys.segment.boxes import seen_in
from psys.segment.decode import decode_upright
from psys.segment.grabcut import Box, SegmentConfig, segment
from psys.segment.quality import QUALITY, measure


@dataclass(frozen=True)
class ImageTask:
    """Consecutive images of a split, few enough to travel: pixels, or references that the actor can read."""

    images: NDArray[np.uint8] | tuple[Reference, ...]  # (B, H, W, 3) RGB, or B references
    boxes: tuple[Box | None, ...] = ()  # B, in pixels of the images as they are stored; none at all if none is known

    def __len__(self) -> int:
        return len(self.images)

    def row(self, index: int) -> "ImageTask":
        """The shard of this image alone."""
        rows = slice(index, index + 1)
        return ImageTask(self.images[rows], self.boxes[rows])


class Failure(NamedTuple):
    """An image that could not be prepared."""

    row: int  # of the shard
    reason: str
    lasting: bool = True  # False: another attempt may succeed


@dataclass(frozen=True)
class Recipe:
    """What every image goes through on its way into a store.

    dense: its middle square, `size` pixels wide; encoded: the whole of it, its short side `size` pixels at most.
    """

    size: int
    layout: StoreLayout = "dense"
    segment: SegmentConfig = field(default_factory=SegmentConfig)


@dataclass(frozen=True)
class Prepared:
    """Rows for the store, K <= B in the shard's order, and what failed of the others."""

    rows: NDArray[np.int64]  # (K,), of the shard
    images: NDArray[np.uint8] | tuple[bytes, ...]  # (K, size, size, 3), or K encoded ones
    masks: NDArray[np.bool_] | tuple[bytes, ...]  # (K, size, size), or K encoded ones
    quality: NDArray[np.float32]  # (K, Q), named by QUALITY
    failures: tuple[Failure, ...] = ()

    @classmethod
    def failed(cls, recipe: Recipe, failures: tuple[Failure, ...]) -> Self:
        """Nothing but failures."""
        rows, quality = np.zeros(0, np.int64), np.zeros((0, len(QUALITY)), np.float32)
        if recipe.layout == "encoded":
            return cls(rows, (), (), quality, failures)
        square = (recipe.size, recipe.size)
        return cls(rows, np.zeros((0, *square, 3), np.uint8), np.zeros((0, *square), np.bool_), quality, failures)

    @classmethod
    def joined(cls, parts: dict[int, Self]) -> Self:
        """One of parts, each with the row of the shard where it begins."""
        if len(parts) == 1:
            return next(iter(parts.values()))
        ordered = sorted(parts.items())
        return cls(
            np.concatenate([first + part.rows for first, part in ordered]),
            _together([part.images for _, part in ordered]),
            _together([part.masks for _, part in ordered]),
            _together([part.quality for _, part in ordered]),
            tuple(failure._replace(row=first + failure.row) for first, part in ordered for failure in part.failures),
        )


def _together(columns: list[Any]) -> Any:
    return tuple(itertools.chain(*columns)) if isinstance(columns[0], tuple) else np.concatenate(columns)


def prepare_images(shard: ImageTask, recipe: Recipe) -> Prepared:
    """Decode, segment and resize every image of a shard; what is wrong with an image is reported, never raised."""
    images: list[Any] = []
    masks: list[Any] = []
    rows, quality, failures = [], [], []
    for row, item in enumerate(shard.images):
        box = shard.boxes[row] if shard.boxes else None
        try:
            image, mask = _prepare(item, box, recipe)
            figures = measure(image, mask)
            kept: tuple[Any, Any] = image, mask
            if recipe.layout == "encoded":
                kept = encode_image(image), encode_mask(mask)
        except (ValueError, OSError, cv2.error, MemoryError) as error:  # OSError: Pillow has its limits
            reason = " ".join(str(error).split()) or type(error).__name__
            passing = isinstance(error, MemoryError) or isinstance(error.__cause__, OSError)
            failures.append(Failure(row, reason, lasting=not passing))
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
    if box is not None and seen_in(box, whole) is None:
        raise ValueError(f"its box {tuple(box)} lies outside of its {width} x {height} pixels")
    window = center_square(width, height) if recipe.layout == "dense" else whole
    image = image[window.top : window.bottom, window.left : window.right]
    pixels = _resize(image, recipe)
    if box is not None and (box := seen_in(box, window)) is None:
        return pixels, np.zeros(pixels.shape[:2], np.bool_)  # the object was cropped away
    return pixels, _resize(segment(image, recipe.segment, box).astype(np.uint8) * 255, recipe) > 127


def center_square(width: int, height: int) -> Box:
    """The largest centred square of an image: with the resize after it, the usual crop of the scaled short side."""
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return Box(left, top, left + side, top + side)


def _resize(image: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.uint8]:
    now = min(image.shape[:2])
    if now == recipe.size or (now < recipe.size and recipe.layout == "encoded"):
        return image
    height, width = (round(side * recipe.size / now) for side in image.shape[:2])
    how = cv2.INTER_AREA if now > recipe.size else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=how).astype(np.uint8, copy=False)

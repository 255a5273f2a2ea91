"""Segment one image into foreground and background with GrabCut, by a strategy or within a given box."""

from typing import Annotated, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from psys.config import Config
from psys.segment import auto, seeded
from psys.segment.cut import FULL_SIZE, contrast_for, cut, cut_with_opencv, rectangle, trimap_of

LONGEST, SHORTEST = 512, 16  # limits of the working size's sides, in pixels
SEEDED_ENLARGEMENT, SEEDED_SHORT_SIDE = 2.0, 128
FIND_SHORT_SIDE, FINE_SHORT_SIDE = 128, 224  # sizes at which `auto` finds the object and refines its outline
SHRUNK = 0.4  # the refined mask is used if it has at least this share of the found one
RECT_MARGIN = 0.05
ITERATIONS = {"auto": 1, "seeded": 1, "rect": 5, "box": 3}


class Box(NamedTuple):
    """Bounding box of an object in pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


class SegmentConfig(Config):
    """How images are segmented."""

    strategy: Literal["auto", "seeded", "rect"] = "auto"
    """auto: the best of several cuts; seeded: a sure foreground core in the centre; rect: GrabCut with a 5 % margin."""
    scale: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    """Factor of the strategy's working size; time grows with its square."""
    iterations: Annotated[int, Field(ge=1, le=20)] | None = None
    """Iterations of each cut (default: auto and seeded 1, rect 5, within a box 3)."""


DEFAULT = SegmentConfig()


def segment(image: NDArray[np.uint8], config: SegmentConfig = DEFAULT, box: Box | None = None) -> NDArray[np.bool_]:
    """Foreground mask (H, W) of an RGB image (H, W, 3) uint8 of any size; the result is deterministic.

    With a `box` everything outside it is background, with any strategy.
    Raises ValueError for another shape or dtype, and for a box outside the image.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"expected an RGB image (H, W, 3) uint8, got {image.shape} {image.dtype}")
    iterations = config.iterations or ITERATIONS["box" if box else config.strategy]
    if box is not None:
        mask = _within(image, box, config.scale, iterations)
    elif config.strategy == "rect":
        working = resized(image, min(image.shape[:2]) * config.scale)
        mask = cut_with_opencv(working, rectangle(working.shape, RECT_MARGIN), iterations)
    elif config.strategy == "seeded":
        size = config.scale * min(SEEDED_ENLARGEMENT * min(image.shape[:2]), SEEDED_SHORT_SIDE)
        mask = seeded.find(resized(image, size), iterations)
    else:
        mask = _automatic(image, config.scale, iterations)
    return scaled(mask, image.shape)


def _automatic(image: NDArray[np.uint8], scale: float, iterations: int) -> NDArray[np.bool_]:
    short = min(image.shape[:2])
    mask = auto.find(resized(image, scale * min(FIND_SHORT_SIDE, short)), iterations)
    if short <= FIND_SHORT_SIDE:
        return _to_edge(mask, 1)
    fine = resized(image, scale * min(FINE_SHORT_SIDE, short))
    outlined = _cut(fine, trimap_of(scaled(mask, fine.shape), 2), iterations)
    return _to_edge(outlined, 2) if outlined.mean() >= SHRUNK * mask.mean() else _to_edge(mask, 1)


def _to_edge(mask: NDArray[np.bool_], frame: int) -> NDArray[np.bool_]:
    # The frame was set to background: foreground that touches the frame is extended to the image's edge.
    return np.pad(mask[frame:-frame, frame:-frame], frame, mode="edge")


def _within(image: NDArray[np.uint8], box: Box, scale: float, iterations: int) -> NDArray[np.bool_]:
    inside = np.zeros(image.shape[:2], np.bool_)
    inside[max(0, box.top) : max(0, box.bottom), max(0, box.left) : max(0, box.right)] = True
    if not inside.any():
        raise ValueError(f"expected a box (left, top, right, bottom) within {image.shape[:2]} (H, W), got {tuple(box)}")
    working = resized(image, scale * min(FULL_SIZE, *image.shape[:2]))
    start = np.where(scaled(inside, working.shape), cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    return _cut(working, start, iterations)


def _cut(image: NDArray[np.uint8], trimap: NDArray[np.uint8], iterations: int) -> NDArray[np.bool_]:
    lab = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), np.uint8)
    return auto.refined(cut(lab, trimap, contrast_for(image.shape), iterations))


def resized(image: NDArray[np.uint8], short_side: float) -> NDArray[np.uint8]:
    """An image (H, W, 3) resized to a shorter side of `short_side` pixels, within the limits of the working size."""
    short, long = sorted(image.shape[:2])
    scale = min(short_side / short, LONGEST / long)
    height, width = (max(SHORTEST, round(side * scale)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)


def scaled(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask (H, W) resized to an image's shape (H, W, ...)."""
    interpolation = cv2.INTER_AREA if mask.shape[0] > shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(mask.astype(np.uint8) * 255, shape[1::-1], interpolation=interpolation)) > 127

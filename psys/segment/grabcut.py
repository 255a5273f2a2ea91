"""One image -> its foreground, by GrabCut with a declared strategy, or within a known box."""

from typing import Annotated, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from psys.config import Config
from psys.segment import auto, seeded
from psys.segment.cut import FULL_SIZE, contrast_for, cut, cut_plainly, rectangle, trimap_of

LONGEST, LEAST = 512, 16  # bounds of the working size, in pixels of a side
SEEDED_ENLARGEMENT, SEEDED_SHORT_SIDE = 2.0, 128
FIND_SHORT_SIDE, FINE_SHORT_SIDE = 128, 224  # where `auto` looks for the object, and where it draws its outline
SHRUNK = 0.4  # the outline must keep this share of what was found
RECT_MARGIN = 0.05
ITERATIONS = {"auto": 1, "seeded": 1, "rect": 5, "box": 3}


class Box(NamedTuple):
    """Where an object is: pixels of its image, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


class SegmentConfig(Config):
    """How an image's foreground is found."""

    strategy: Literal["auto", "seeded", "rect"] = "auto"
    """auto: several starts, the best cut; seeded: a sure core in the middle; rect: plain GrabCut, margin 5 %."""
    scale: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    """The size to work at, in units of the strategy's own; time grows with its square."""
    iterations: Annotated[int, Field(ge=1, le=20)] | None = None
    """Iterations of each cut; none: the strategy's own (auto and seeded 1, rect 5, within a box 3)."""


DEFAULT = SegmentConfig()


def segment(image: NDArray[np.uint8], config: SegmentConfig = DEFAULT, box: Box | None = None) -> NDArray[np.bool_]:
    """Foreground mask (H, W) of an RGB image (H, W, 3) uint8 of any size; the same image gives the same mask.

    With a `box` everything outside it is background, whatever the strategy.
    Raises ValueError for any other shape or dtype, and for a box that has no pixel of the image.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"expected an RGB image (H, W, 3) uint8, got {image.shape} {image.dtype}")
    iterations = config.iterations or ITERATIONS["box" if box else config.strategy]
    if box is not None:
        mask = _within(image, box, config.scale, iterations)
    elif config.strategy == "rect":
        working = resized(image, min(image.shape[:2]) * config.scale)
        mask = cut_plainly(working, rectangle(working.shape, RECT_MARGIN), iterations)
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
    # The frame was background by decree: what reaches it reaches the image's edge.
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
    """An image (H, W, 3) with a shorter side of so many pixels, within the bounds of the working size."""
    short, long = sorted(image.shape[:2])
    scale = min(short_side / short, LONGEST / long)
    height, width = (max(LEAST, round(side * scale)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), np.uint8)


def scaled(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask (H, W) for an image of another size (H, W, ...)."""
    how = cv2.INTER_AREA if mask.shape[0] > shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(mask.astype(np.uint8) * 255, shape[1::-1], interpolation=how)) > 127

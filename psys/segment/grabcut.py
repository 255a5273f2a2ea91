"""One image -> its foreground, by GrabCut (Rother, Kolmogorov, Blake 2004) seeded in the middle instead of by a box.

GrabCut knows colours, not places: where an object resembles its surroundings it shrinks to whatever was declared sure
foreground, and a box around a small image mostly leaves nothing at all. So the start is a wide sure core, from which
the colour model learns most of the object, and only then a narrow one, which lets go of background seen within the
wide core. Where that second cut loses most of the first, colour does not tell the two apart and the first one stands.
"""

from typing import Annotated, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from psys.config import Config

# Radii in units of the image's sides, the border's thickness in units of the shorter one.
PROBABLE_RADIUS = 0.42
WIDE_CORE, NARROW_CORE = 0.22, 0.10
BORDER = 0.03
SHRUNK = 0.4  # the narrow cut must keep this share of the wide one

# The smoothness weight of OpenCV's GrabCut is fixed, so the working size decides the scale of what it finds.
ENLARGEMENT = 2.0
WORKING_SHORT_SIDE, WORKING_LONG_SIDE, WORKING_LEAST_SIDE = 128, 512, 16


class Box(NamedTuple):
    """Where an object is known to be, in pixels of its image; right and bottom are the first pixels outside."""

    left: int
    top: int
    right: int
    bottom: int


class SegmentConfig(Config):
    """How the foreground is found."""

    strategy: Literal["auto", "seeded", "rect"] = "seeded"
    """How GrabCut is started."""
    scale: Annotated[float, Field(gt=0, le=8)] = ENLARGEMENT
    """By how much a small image is enlarged."""
    iterations: Annotated[int, Field(ge=1, le=20)] = 1
    """Iterations of each cut."""


def segment(
    image: NDArray[np.uint8],
    config: SegmentConfig = SegmentConfig(),  # noqa: B008
    box: Box | None = None,
) -> NDArray[np.bool_]:
    """Foreground mask (H, W) of an RGB image (H, W, 3) uint8 of any size; the same image gives the same mask.

    Raises ValueError for any other shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"expected an RGB image (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    working = _to_working_size(image, config.scale)
    radius = _radius(*working.shape[:2])
    frame = max(1, round(BORDER * min(working.shape[:2])))
    models = np.zeros((1, 65)), np.zeros((1, 65))  # background and foreground, carried from cut to cut
    cv2.setRNGSeed(0)

    wide = _cut(working, radius < PROBABLE_RADIUS, radius < WIDE_CORE, frame, models, cv2.GC_INIT_WITH_MASK)
    narrow = _cut(working, wide, radius < NARROW_CORE, frame, models, cv2.GC_EVAL)
    mask = narrow if narrow.sum() >= SHRUNK * wide.sum() else wide

    refined = _refine(mask, radius < NARROW_CORE, frame)
    how = cv2.INTER_AREA if refined.shape[0] > height else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(refined, (width, height), interpolation=how)) > 127


def _to_working_size(image: NDArray[np.uint8], enlargement: float) -> NDArray[np.uint8]:
    short, long = sorted(image.shape[:2])
    scale = min(enlargement, WORKING_SHORT_SIDE / short, WORKING_LONG_SIDE / long)
    height, width = (max(WORKING_LEAST_SIDE, round(side * scale)) for side in image.shape[:2])
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), np.uint8)


def _radius(height: int, width: int) -> NDArray[np.float64]:
    """Distance of each pixel from the centre in units of the sides, (H, W)."""
    y, x = np.mgrid[:height, :width]
    return np.asarray(np.hypot((x + 0.5) / width - 0.5, (y + 0.5) / height - 0.5))


def _cut(
    image: NDArray[np.uint8],
    probable: NDArray[np.bool_],
    core: NDArray[np.bool_],
    frame: int,
    models: tuple[NDArray[np.float64], NDArray[np.float64]],
    mode: int,
) -> NDArray[np.bool_]:
    # One iteration: more of them cost as much again and shrink more masks than they mend.
    trimap = np.where(probable, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    trimap[core] = cv2.GC_FGD
    trimap = np.pad(trimap[frame:-frame, frame:-frame], frame, constant_values=cv2.GC_BGD)
    cv2.grabCut(image, trimap, (0, 0, 0, 0), *models, 1, mode)
    return np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD))


def _refine(mask: NDArray[np.bool_], core: NDArray[np.bool_], frame: int) -> NDArray[np.uint8]:
    """The parts in the middle and the largest part, smoothed and without holes, as 0 or 255."""
    # The frame was background by decree: what reaches it reaches the image's edge, else no mask could be too large.
    whole = np.pad(mask[frame:-frame, frame:-frame], frame, mode="edge")
    smooth = cv2.medianBlur(whole.astype(np.uint8), 3)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(smooth, connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0  # the background
    kept = np.append(np.unique(parts[core]), areas.argmax())
    outlines, _ = cv2.findContours(
        np.isin(parts, kept[kept > 0]).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    return np.asarray(cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 255, cv2.FILLED), np.uint8)

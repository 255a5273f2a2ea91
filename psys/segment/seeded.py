"""The `seeded` strategy: GrabCut (Rother, Kolmogorov, Blake 2004) seeded in the middle instead of by a box.

GrabCut knows colours, not places: where an object resembles its surroundings it shrinks to whatever was declared sure
foreground, and a box around a small image mostly leaves nothing at all. So the start is a wide sure core, from which
the colour model learns most of the object, and only then a narrow one, which lets go of background seen within the
wide core. Where that second cut loses most of the first, colour does not tell the two apart and the first one stands.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

# Radii in units of the image's sides, the border's thickness in units of the shorter one.
PROBABLE_RADIUS = 0.42
WIDE_CORE, NARROW_CORE = 0.22, 0.10
BORDER = 0.03
SHRUNK = 0.4  # the narrow cut must keep this share of the wide one


def find(image: NDArray[np.uint8], iterations: int) -> NDArray[np.bool_]:
    """Foreground (H, W) of an RGB image (H, W, 3), by two cuts of that many iterations."""
    radius = _radius(*image.shape[:2])
    frame = max(1, round(BORDER * min(image.shape[:2])))
    models = np.zeros((1, 65)), np.zeros((1, 65))  # background and foreground, carried from cut to cut
    cv2.setRNGSeed(0)

    wide = _cut(image, radius < PROBABLE_RADIUS, radius < WIDE_CORE, frame, models, iterations, cv2.GC_INIT_WITH_MASK)
    narrow = _cut(image, wide, radius < NARROW_CORE, frame, models, iterations, cv2.GC_EVAL)
    mask = narrow if narrow.sum() >= SHRUNK * wide.sum() else wide
    return _refine(mask, radius < NARROW_CORE, frame)


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
    iterations: int,
    mode: int,
) -> NDArray[np.bool_]:
    trimap = np.where(probable, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    trimap[core] = cv2.GC_FGD
    trimap = np.pad(trimap[frame:-frame, frame:-frame], frame, constant_values=cv2.GC_BGD)
    cv2.grabCut(image, trimap, (0, 0, 0, 0), *models, iterations, mode)
    return np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD))


def _refine(mask: NDArray[np.bool_], core: NDArray[np.bool_], frame: int) -> NDArray[np.bool_]:
    """The parts in the middle and the largest part, smoothed and without holes."""
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
    return np.asarray(cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, cv2.FILLED), np.bool_)

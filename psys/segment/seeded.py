"""The `seeded` strategy: GrabCut (Rother, Kolmogorov, Blake 2004) initialised at the centre instead of with a box.

GrabCut models colours, not positions: an object that resembles its background shrinks to the pixels declared as sure
foreground, and a box around a small image often gives an empty mask. The first cut therefore has a wide core of sure
foreground, from which the colour model learns most of the object. The second cut has a narrow core and can release
background pixels inside the wide one. If the second cut loses most of the first, the colours do not separate object and
background, and the first cut is kept.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

# Radii as a share of the image's sides; the border's thickness as a share of the shorter side.
PROBABLE_RADIUS = 0.42
WIDE_CORE, NARROW_CORE = 0.22, 0.10
BORDER = 0.03
SHRUNK = 0.4  # the second cut is used if it has at least this share of the first


def find(image: NDArray[np.uint8], iterations: int) -> NDArray[np.bool_]:
    """Foreground (H, W) of an RGB image (H, W, 3) by two cuts of `iterations` iterations each."""
    radius = _radius(*image.shape[:2])
    frame = max(1, round(BORDER * min(image.shape[:2])))
    models = np.zeros((1, 65)), np.zeros((1, 65))  # background and foreground, kept between the cuts
    cv2.setRNGSeed(0)

    wide = _cut(image, radius < PROBABLE_RADIUS, radius < WIDE_CORE, frame, models, iterations, cv2.GC_INIT_WITH_MASK)
    narrow = _cut(image, wide, radius < NARROW_CORE, frame, models, iterations, cv2.GC_EVAL)
    mask = narrow if narrow.sum() >= SHRUNK * wide.sum() else wide
    return _refine(mask, radius < NARROW_CORE, frame)


def _radius(height: int, width: int) -> NDArray[np.float64]:
    """Distance of each pixel from the centre as a share of the sides, (H, W)."""
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
    """The components in the core and the largest component, smoothed and without holes."""
    # The frame was set to background: foreground that touches the frame is extended to the image's edge.
    extended = np.pad(mask[frame:-frame, frame:-frame], frame, mode="edge")
    smooth = cv2.medianBlur(extended.astype(np.uint8), 3)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(smooth, connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0  # the background
    kept = np.append(np.unique(parts[core]), areas.argmax())
    outlines, _ = cv2.findContours(
        np.isin(parts, kept[kept > 0]).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    return np.asarray(cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, cv2.FILLED), np.bool_)

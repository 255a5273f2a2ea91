"""Saliency maps: the probable location of an image's object, which differs from the border and is near the centre.

The border is mostly background. Three measures of the difference from it complement each other: the minimum barrier
distance (Strand et al. 2013; computed by sweeps as in Zhang et al. 2015), the Mahalanobis distance to the colours of
each side (Zhang et al. 2015), and the rarity of a pixel's colour among the border's colours. A fourth, independent
measure is local detail: photographs are in focus where the object is.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

BORDER = 0.08  # thickness of the border, as a share of the shorter side
SPREAD = 0.33  # standard deviation of the Gaussian around the centre, as a share of the sides
DETAIL_SPREAD = 0.05  # standard deviation of the Gaussian that averages detail, as a share of the shorter side
BORDER_SAMPLES, KERNEL, LIGHTNESS_WEIGHT, RAREST = 64, 6.0, 0.6, 1e-3

Map = NDArray[np.float32]


class Saliency(NamedTuple):
    """Saliency maps of one image, each (H, W), 0..1."""

    whole: Map  # the three measures, weighted towards the centre
    anywhere: Map  # the three measures
    barrier: Map  # minimum barrier distance
    rarity: Map  # rarity among the border's colours, weighted towards the centre
    focus: Map  # detail, weighted towards the centre
    combined: Map  # the three measures and detail, weighted towards the centre

    def resized(self, height: int, width: int) -> "Saliency":
        """The maps resized to a larger image."""
        if self.whole.shape == (height, width):
            return self
        return Saliency(*(np.asarray(cv2.resize(values, (width, height)), np.float32) for values in self))


def saliency(image: NDArray[np.uint8]) -> Saliency:
    """Saliency maps of a small RGB image (H, W, 3); time is proportional to the area times `BORDER_SAMPLES`."""
    lab = np.asarray(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)
    thick = max(1, round(BORDER * min(lab.shape[:2])))
    centre = _centre_weight(*lab.shape[:2])
    barrier, rarity = stretch(_barrier(np.asarray(cv2.blur(lab, (3, 3)), np.float32))), stretch(_rarity(lab, thick))
    total = barrier + rarity + stretch(_side_distance(lab, thick))
    anywhere, detail = stretch(total), stretch(_detail(image))
    return Saliency(
        stretch(total * centre),
        anywhere,
        barrier,
        stretch(rarity * centre),
        stretch(detail * centre),
        stretch((anywhere + detail) * centre),
    )


def otsu(values: Map) -> float:
    """Otsu's threshold (1979) for values in 0..1."""
    return cv2.threshold((values * 255).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)[0] / 255


def stretch(values: NDArray[np.floating]) -> Map:
    """`values` scaled so that their 2nd and 98th percentile become 0 and 1, and clipped to 0..1."""
    low, high = np.percentile(values, (2, 98))
    return np.asarray(((values - low) / (high - low + 1e-6)).clip(0, 1), np.float32)


def _detail(image: NDArray[np.uint8]) -> Map:
    """Local mean of the absolute Laplacian, a measure of sharpness."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    return np.asarray(cv2.GaussianBlur(fine, (0, 0), DETAIL_SPREAD * min(grey.shape)), np.float32)


def _centre_weight(height: int, width: int) -> Map:
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    return np.asarray(np.exp(-(y[:, None] ** 2 + x**2) / (2 * SPREAD**2)), np.float32)


def _barrier(lab: Map) -> Map:
    """Minimum barrier distance to the border, summed over channels, by one sweep in each direction.

    The barrier of a path is the range of values on it.
    """
    distance = np.full_like(lab, np.inf)
    distance[0] = distance[-1] = distance[:, 0] = distance[:, -1] = 0
    state = np.stack([lab, lab, lab, distance])  # the value, highest and lowest value on the best path, their range
    for lines in (state, state.swapaxes(1, 2)):
        for ordered in (lines, lines[:, ::-1]):
            _sweep(ordered)
    return np.asarray(state[3].sum(axis=2))


def _sweep(state: Map) -> None:
    for before, line in zip(range(state.shape[1] - 1), range(1, state.shape[1]), strict=True):
        value, _, _, distance = state[:, line]
        highest, lowest = np.maximum(state[1, before], value), np.minimum(state[2, before], value)
        barrier = highest - lowest
        better = barrier < distance
        for row, new in enumerate((highest, lowest, barrier), 1):
            np.copyto(state[row, line], new, where=better)


def _side_distance(lab: Map, thick: int) -> Map:
    """Sum of Mahalanobis distances to the colours of three sides; the farthest is left out, the object may touch it."""
    distances = []
    for side in (lab[:thick], lab[-thick:], lab[:, :thick], lab[:, -thick:]):
        pixels = side.reshape(-1, 3)
        offset = lab - pixels.mean(axis=0)
        inverse = np.linalg.inv(np.cov(pixels, rowvar=False) + 9 * np.eye(3)).astype(np.float32)
        distance = np.sqrt(((offset @ inverse) * offset).sum(axis=2))
        distances.append(distance / (distance.max() + 1e-6))
    return np.asarray(np.sum(distances, axis=0) - np.max(distances, axis=0), np.float32)


def _rarity(lab: Map, thick: int) -> Map:
    """Negative log density of a pixel's colour in the border, by Gaussian kernels at a sample of border pixels."""
    colours = lab * (np.array((LIGHTNESS_WEIGHT, 1, 1), np.float32) / KERNEL)
    inner = np.zeros(lab.shape[:2], np.bool_)
    inner[thick:-thick, thick:-thick] = True
    border = colours[~inner]
    border = border[np.linspace(0, len(border) - 1, min(len(border), BORDER_SAMPLES)).astype(int)]
    squares = sum((colours[..., k, None] - border[:, k]) ** 2 for k in range(3))
    density = np.exp(squares / np.float32(-2)).mean(axis=2)
    return np.asarray(-np.log(density + RAREST))

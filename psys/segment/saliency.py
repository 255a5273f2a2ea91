"""Where an image's object probably is: what differs from its border, is not reached from it, and lies in the middle.

The border is mostly background. Three measures of not being like it, each good where the others fail: the minimum
barrier distance (Strand et al. 2013; by sweeps as in Zhang et al. 2015), the distance to the mean colour of each side
in units of its spread (Zhang et al. 2015), and how rare a pixel's colour is among those of the border. Apart from it
stands detail: photographs are sharp where their object is.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

BORDER = 0.08  # thickness of what counts as border, in units of the shorter side
SPREAD = 0.33  # of the Gaussian around the centre, in units of the sides
DETAIL_SPREAD = 0.05  # of the Gaussian that gathers detail, in units of the shorter side
BORDER_SAMPLES, KERNEL, LIGHTNESS_WEIGHT, RAREST = 64, 6.0, 0.6, 1e-3

Map = NDArray[np.float32]


class Saliency(NamedTuple):
    """Maps of one image, each (H, W) and 0..1."""

    whole: Map  # all measures, weighted towards the middle
    anywhere: Map  # all measures
    barrier: Map  # not reached from the border
    rarity: Map  # not of the border's colours, weighted towards the middle
    focus: Map  # rich in detail, weighted towards the middle
    combined: Map  # all measures and detail, weighted towards the middle

    def resized(self, height: int, width: int) -> "Saliency":
        """The same maps for a larger image."""
        if self.whole.shape == (height, width):
            return self
        return Saliency(*(np.asarray(cv2.resize(values, (width, height)), np.float32) for values in self))


def saliency(image: NDArray[np.uint8]) -> Saliency:
    """The maps of a small RGB image (H, W, 3); time grows with the area times `BORDER_SAMPLES`."""
    lab = np.asarray(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)
    thick = max(1, round(BORDER * min(lab.shape[:2])))
    middle = _middle(*lab.shape[:2])
    barrier, rarity = stretch(_barrier(np.asarray(cv2.blur(lab, (3, 3)), np.float32))), stretch(_rarity(lab, thick))
    total = barrier + rarity + stretch(_side_distance(lab, thick))
    anywhere, detail = stretch(total), stretch(_detail(image))
    return Saliency(
        stretch(total * middle),
        anywhere,
        barrier,
        stretch(rarity * middle),
        stretch(detail * middle),
        stretch((anywhere + detail) * middle),
    )


def otsu(values: Map) -> float:
    """The threshold of Otsu (1979) for values of 0..1."""
    return cv2.threshold((values * 255).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)[0] / 255


def stretch(values: NDArray[np.floating]) -> Map:
    """`values` from their 2nd to their 98th percentile, spread to 0..1."""
    low, high = np.percentile(values, (2, 98))
    return np.asarray(((values - low) / (high - low + 1e-6)).clip(0, 1), np.float32)


def _detail(image: NDArray[np.uint8]) -> Map:
    """Mean strength, nearby, of what is finer than a pixel's surroundings."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    return np.asarray(cv2.GaussianBlur(fine, (0, 0), DETAIL_SPREAD * min(grey.shape)), np.float32)


def _middle(height: int, width: int) -> Map:
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    return np.asarray(np.exp(-(y[:, None] ** 2 + x**2) / (2 * SPREAD**2)), np.float32)


def _barrier(lab: Map) -> Map:
    """Least range of values on a path from the border, summed over channels, by one sweep in each direction."""
    distance = np.full_like(lab, np.inf)
    distance[0] = distance[-1] = distance[:, 0] = distance[:, -1] = 0
    state = np.stack([lab, lab, lab, distance])  # the value, the highest and the lowest on the best path, their range
    for lines in (state, state.swapaxes(1, 2)):
        for ordered in (lines, lines[:, ::-1]):
            _sweep(ordered)
    return np.asarray(state[3].sum(axis=2))


def _sweep(state: Map) -> None:
    for before, line in zip(range(state.shape[1] - 1), range(1, state.shape[1]), strict=True):
        value, _, _, distance = state[:, line]
        highest, lowest = np.maximum(state[1, before], value), np.minimum(state[2, before], value)
        reach = highest - lowest
        better = reach < distance
        for row, new in enumerate((highest, lowest, reach), 1):
            np.copyto(state[row, line], new, where=better)


def _side_distance(lab: Map, thick: int) -> Map:
    """Mahalanobis distance to the colours of each side but the farthest, which an object may touch."""
    distances = []
    for side in (lab[:thick], lab[-thick:], lab[:, :thick], lab[:, -thick:]):
        pixels = side.reshape(-1, 3)
        off = lab - pixels.mean(axis=0)
        inverse = np.linalg.inv(np.cov(pixels, rowvar=False) + 9 * np.eye(3)).astype(np.float32)
        distance = np.sqrt(((off @ inverse) * off).sum(axis=2))
        distances.append(distance / (distance.max() + 1e-6))
    return np.asarray(np.sum(distances, axis=0) - np.max(distances, axis=0), np.float32)


def _rarity(lab: Map, thick: int) -> Map:
    """Minus the logarithm of a colour's density among the border's, by Gaussian kernels around a sample of it."""
    colours = lab * (np.array((LIGHTNESS_WEIGHT, 1, 1), np.float32) / KERNEL)
    inner = np.zeros(lab.shape[:2], np.bool_)
    inner[thick:-thick, thick:-thick] = True
    border = colours[~inner]
    border = border[np.linspace(0, len(border) - 1, min(len(border), BORDER_SAMPLES)).astype(int)]
    squares = sum((colours[..., k, None] - border[:, k]) ** 2 for k in range(3))
    density = np.exp(squares / np.float32(-2)).mean(axis=2)
    return np.asarray(-np.log(density + RAREST))

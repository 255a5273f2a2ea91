"""The `auto` strategy: several guesses of where the object is, each cut out, and the best of the cuts.

No start of GrabCut is good for every image, but good ones agree: each kind of prior fails in its own way. So the cuts
from all of them vote, the vote with the saliency gives one more start, and the cut that agrees best with the vote wins,
unless its shape, its edge or its colours speak against it.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from psys.segment.cut import contrast_for, cut, rectangle, trimap_of
from psys.segment.quality import colour_separation
from psys.segment.saliency import Saliency, otsu, saliency, stretch

# What counts in a cut, by ridge regression of its IoU within each image of a set of composites (benchmarks/RESULTS.md).
AGREEMENT, LARGEST_PART, BORDER_SQUARED, EDGE, SEPARATION, ODDS = 0.95, 0.3, 0.55, 0.45, 0.16, 0.016
MOST_ODDS = 5.0  # that a single pixel counts
# Of the way from 0 to the threshold, or from there to 1: starts for objects of which a part stands out, or much does.
LOW, HIGH = 0.6, 0.4
MARGIN = 0.05  # of the rectangle, one more start, in units of the sides
SALIENCY_SIDE = 64  # the shorter one, in pixels, at most
SMALLEST, LARGEST = 0.03, 0.9  # shares of foreground of cuts that count
HOLE = 0.01  # smaller holes, in units of the image, are filled
PART = 0.1  # parts smaller than this share of the largest are crumbs


def find(image: NDArray[np.uint8], iterations: int) -> NDArray[np.bool_]:
    """Foreground (H, W) of an RGB image (H, W, 3)."""
    height, width = image.shape[:2]
    maps = saliency(_reduced(image)).resized(height, width)
    lab = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), np.uint8)
    contrast = contrast_for(image.shape)

    def cut_from(trimap: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return refined(cut(lab, trimap, contrast, iterations))

    cuts = [cut_from(trimap) for trimap in _starts(maps)]
    voting = [mask for mask in cuts if SMALLEST < mask.mean() < LARGEST]
    vote = np.asarray(np.mean(voting, axis=0), np.float32) if voting else maps.whole
    cuts.append(cut_from(trimap_of(stretch(vote + maps.whole / 2) > 0.5, 1)))
    edges = _Edges(lab)
    sized = [mask for mask in cuts if SMALLEST < mask.mean() < LARGEST]
    if not sized:  # colours tell nothing here: what is salient is left
        return refined(maps.whole > otsu(maps.whole))
    return max(sized, key=lambda mask: _score(lab, mask, vote, edges))


def _reduced(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = SALIENCY_SIDE / min(image.shape[:2])
    if scale >= 1:
        return image
    return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)


def _without_crumbs(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest part and those of comparable size."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0  # the background
    return np.asarray((areas >= max(1, PART * areas.max()))[parts]) if count > 1 else mask


def refined(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest part and those of comparable size, without small holes."""
    mask = _without_crumbs(mask)
    count, parts, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < HOLE * mask.size
    small[0] = True  # the foreground
    return np.asarray(small[parts]) if count > 1 else mask


def _starts(maps: Saliency) -> list[NDArray[np.uint8]]:
    threshold = otsu(maps.whole)
    probable = [maps.whole > t for t in (threshold, LOW * threshold, threshold + HIGH * (1 - threshold))]
    probable += [values > otsu(values) for values in (maps.anywhere, maps.barrier, maps.rarity)]
    return [*(trimap_of(mask, 1) for mask in probable), rectangle(maps.whole.shape, MARGIN)]


class _Edges:
    """Steps of colour between neighbours, and how strong they are along a mask's outline against the image's own."""

    def __init__(self, lab: NDArray[np.uint8]) -> None:
        values = lab.astype(np.float32)
        self._down, self._right = (np.linalg.norm(np.diff(values, axis=axis), axis=2) for axis in (0, 1))
        self._usual = float(self._down.mean() + self._right.mean())

    def strength(self, mask: NDArray[np.bool_]) -> float:
        down, right = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
        length = np.count_nonzero(down) + np.count_nonzero(right)
        if not length:
            return 0.0
        along = float(self._down[down].sum() + self._right[right].sum()) / length
        return along / (along + self._usual + 1e-6)


def _score(lab: NDArray[np.uint8], mask: NDArray[np.bool_], vote: NDArray[np.float32], edges: _Edges) -> float:
    agreement = 2 * (vote * mask).sum() / (vote.sum() + mask.sum())
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    largest = stats[1:, cv2.CC_STAT_AREA].max() / mask.sum()
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()
    return float(
        AGREEMENT * agreement
        + LARGEST_PART * largest
        - BORDER_SQUARED * border**2
        + EDGE * edges.strength(mask)
        + SEPARATION * colour_separation(lab, mask)
        + ODDS * _odds(lab, mask)
    )


def _odds(lab: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """Mean logarithmic odds of a pixel for its own side, foreground plus background, one Gaussian of colours each."""
    pixels, inside = lab.reshape(-1, 3).astype(np.float32), mask.ravel()
    if not 8 < inside.sum() < inside.size - 8:
        return 0.0
    densities = []
    for side in (inside, ~inside):
        own = pixels[side]
        mean = own.mean(axis=0)
        covariance = (own - mean).T @ (own - mean) / len(own) + 9 * np.eye(3, dtype=np.float32)
        off = pixels - mean
        squares = np.einsum("ni,ni->n", off @ np.linalg.inv(covariance), off)
        densities.append(-0.5 * (squares + np.log(np.linalg.det(covariance))))
    odds = (densities[0] - densities[1]).clip(-MOST_ODDS, MOST_ODDS)
    return float(odds[inside].mean() - odds[~inside].mean())

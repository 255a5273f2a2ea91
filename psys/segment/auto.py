"""The `auto` strategy: several guesses of where the object is, each cut out, and the best of the cuts.

No start of GrabCut is good for every image, but good ones agree: each kind of prior fails in its own way. So the cuts
from all of them vote, the vote with the saliency gives one more start, and the cut wins that agrees with the vote, is
set off from what surrounds it, and lies in the middle in one piece.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from psys.segment.cut import contrast_for, cut, rectangle, trimap_of
from psys.segment.saliency import Saliency, otsu, saliency, stretch

# What counts in a cut, by ridge regression of its IoU within each image of two sets of composites.
AGREEMENT, LARGEST_PART, OUTLINE, OFF_CENTRE, SURROUNDINGS = 0.83, 0.45, 0.64, 2.7, 0.13
CLUTTER, DETAIL, DOUBTFUL, RARITY = 0.26, 0.31, 0.13, 0.25
LOW = 0.6  # of the threshold: a start for objects of which a part stands out
DISC = 0.25  # radius of one more start, in units of the sides
MARGIN = 0.05  # of the rectangle, the last one, in units of the sides
SALIENCY_SIDE = 64  # the shorter one, in pixels, at most
SMALLEST, LARGEST = 0.03, 0.9  # shares of foreground of cuts that count
HOLE = 0.01  # smaller holes, in units of the image, are filled
PART = 0.1  # parts smaller than this share of the largest are crumbs
LEVELS = np.array((16, 32, 32))  # of L, a, b in histograms of colour
MOST_ODDS = 4.0  # that a single pixel counts
EDGES = 0.1  # of all pixels, the steepest, count as edges
NEARBY = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (13, 13))  # what surrounds a mask
BESIDE = np.ones((3, 3), np.uint8)


def find(image: NDArray[np.uint8], iterations: int) -> NDArray[np.bool_]:
    """Foreground (H, W) of an RGB image (H, W, 3)."""
    height, width = image.shape[:2]
    maps = saliency(_reduced(image)).resized(height, width)
    lab = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), np.uint8)
    contrast = contrast_for(image.shape)

    def cut_from(trimap: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return refined(cut(lab, trimap, contrast, iterations))

    cuts = _sized([cut_from(trimap) for trimap in _starts(maps)])
    vote = np.mean(cuts, axis=0) if cuts else maps.whole
    cuts += _sized([cut_from(trimap_of(stretch(vote + maps.whole / 2) > 0.5, 1))])
    if not cuts:  # colours tell nothing here: what is salient is left
        return refined(maps.whole > otsu(maps.whole))
    judge = _Judge(lab, maps, np.mean(cuts, axis=0, dtype=np.float32))
    return max(cuts, key=judge.score)


def _sized(masks: list[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
    return [mask for mask in masks if SMALLEST < mask.mean() < LARGEST]


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
    shape = maps.whole.shape
    salient = (maps.whole, maps.anywhere, maps.barrier, maps.rarity, maps.focus, maps.combined)
    probable = [values > otsu(values) for values in salient]
    probable += [maps.whole > LOW * otsu(maps.whole), _disc(*shape)]
    return [*(trimap_of(mask, 1) for mask in probable), rectangle(shape, MARGIN)]


def _disc(height: int, width: int) -> NDArray[np.bool_]:
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    return np.asarray(np.hypot(y[:, None], x) < DISC)


class _Judge:
    """Tells good from bad among the cuts of one image, of which `vote` (H, W) is the mean."""

    def __init__(self, lab: NDArray[np.uint8], maps: Saliency, vote: NDArray[np.float32]) -> None:
        self._vote, self._maps = vote, maps
        values = lab.astype(np.float32)
        self._down, self._right = (np.linalg.norm(np.diff(values, axis=axis), axis=2) for axis in (0, 1))
        self._usual = float(self._down.mean() + self._right.mean())
        self._colours = np.ravel_multi_index(tuple(np.moveaxis(lab // (256 // LEVELS), 2, 0)), tuple(LEVELS))
        slopes = (np.abs(cv2.Sobel(values, cv2.CV_32F, *axis)).max(axis=2) for axis in ((1, 0), (0, 1)))
        slope = np.maximum(*slopes)
        self._edges = slope > np.quantile(slope, 1 - EDGES)
        fine = cv2.blur(np.abs(cv2.Laplacian(values[..., 0], cv2.CV_32F)), (5, 5))
        self._detail = np.searchsorted(np.sort(fine, axis=None), fine) / fine.size
        self._places = [(np.arange(side) + 0.5) / side - 0.5 for side in vote.shape]

    def score(self, mask: NDArray[np.bool_]) -> float:
        """What to maximise; every figure has its weight."""
        area, bits = int(mask.sum()), mask.astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(bits, connectivity=4)
        odds = self._odds(mask, area)
        nearby = (cv2.dilate(bits, NEARBY) > 0) & ~mask
        edges_outside = self._edges & (cv2.dilate(bits, BESIDE) == 0)
        centre = [mask.sum(axis=1 - axis) @ self._places[axis] / area for axis in (0, 1)]
        rarity = self._maps.rarity
        return float(
            AGREEMENT * 2 * (self._vote * mask).sum() / (self._vote.sum() + area)
            + LARGEST_PART * stats[1:, cv2.CC_STAT_AREA].max() / area
            + OUTLINE * self._outline(mask)
            - OFF_CENTRE * np.dot(centre, centre)
            - SURROUNDINGS * odds[nearby].mean()
            + CLUTTER * edges_outside.sum() / max(1, self._edges.sum())
            + DETAIL * self._detail[mask].mean()
            - DOUBTFUL * (odds[mask] < 0).mean()
            - RARITY * (rarity[mask].mean() - rarity[~mask].mean())
        )

    def _outline(self, mask: NDArray[np.bool_]) -> float:
        """Steps of colour across the outline against those anywhere, 0..1."""
        down, right = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
        length = np.count_nonzero(down) + np.count_nonzero(right)
        along = float(self._down[down].sum() + self._right[right].sum()) / length
        return along / (along + self._usual + 1e-6)

    def _odds(self, mask: NDArray[np.bool_], area: int) -> NDArray[np.float64]:
        """Logarithmic odds (H, W) of each pixel's colour for the foreground, by histograms of both sides."""
        sides = ((self._colours[mask], area), (self._colours[~mask], mask.size - area))
        inside, outside = (
            np.log((np.bincount(colours, minlength=LEVELS.prod())[self._colours] + 0.3) / (count + 60))
            for colours, count in sides
        )
        return np.asarray((inside - outside).clip(-MOST_ODDS, MOST_ODDS))

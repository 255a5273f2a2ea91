"""The `auto` strategy: several guesses of where the object is, each cut out, and the best of the cuts.

No start of GrabCut is good for every image, but good ones agree: each kind of prior fails in its own way. So the cuts
from all of them vote, the vote with the saliency gives one more start, and the cut wins that agrees with the vote, is
set off from what surrounds it, and lies in the middle in one piece.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from psys.segment.cut import contrast_for, cut, rectangle, trimap_of
from psys.segment.saliency import Saliency, otsu, saliency, stretch

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
NEAR = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (13, 13))  # what surrounds a mask
BESIDE = np.ones((3, 3), np.uint8)


class Figures(NamedTuple):
    """Of a cut, what tells it from better and worse ones of the same image."""

    agreement: float  # with the vote: the coefficient of Dice
    largest_part: float  # by all foreground
    outline: float  # steps of colour across it, by these and the usual ones
    off_centre: float  # squared distance of the centre of mass, in units of the sides
    surroundings: float  # mean odds of a near pixel's colour for the foreground
    edges_outside: float  # by all edges
    detail: float  # mean rank of the foreground's
    doubtful: float  # share of the foreground whose colour is rather one of the background
    rarity: float  # mean of the foreground less that of the background


# By `python -m benchmarks.segment_fit`. The vote has rarity in it already, more than it deserves.
WEIGHTS = Figures(0.83, 0.45, 0.64, -2.7, -0.13, 0.26, 0.31, -0.13, -0.25)


def find(image: NDArray[np.uint8], iterations: int) -> NDArray[np.bool_]:
    """Foreground (H, W) of an RGB image (H, W, 3)."""
    maps = maps_of(image)
    cuts = all_cuts(image, maps, iterations)
    if not cuts:  # colours tell nothing here: what is salient is left
        return refined(maps.whole > otsu(maps.whole))
    judge = Judge(image, maps, cuts)
    return max(cuts, key=lambda cut: np.dot(WEIGHTS, judge.figures(cut)))


def all_cuts(image: NDArray[np.uint8], maps: Saliency, iterations: int) -> list[NDArray[np.bool_]]:
    """The cuts (H, W) of an image (H, W, 3) from all starts, without those that take nearly nothing or everything."""
    lab = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), np.uint8)
    contrast = contrast_for(image.shape)

    def sized(starts: list[NDArray[np.uint8]]) -> list[NDArray[np.bool_]]:
        cuts = (refined(cut(lab, start, contrast, iterations)) for start in starts)
        return [mask for mask in cuts if SMALLEST < mask.mean() < LARGEST]

    cuts = sized(_starts(maps))
    vote = np.mean(cuts, axis=0) if cuts else maps.whole
    return cuts + sized([trimap_of(stretch(vote + maps.whole / 2) > 0.5, 1)])


def maps_of(image: NDArray[np.uint8]) -> Saliency:
    """Where the object of an image (H, W, 3) probably is, found in a smaller one."""
    scale = SALIENCY_SIDE / min(image.shape[:2])
    small = image if scale >= 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return saliency(np.asarray(small, np.uint8)).resized(*image.shape[:2])


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


class Judge:
    """Measures the cuts of one image (H, W, 3)."""

    def __init__(self, image: NDArray[np.uint8], maps: Saliency, cuts: list[NDArray[np.bool_]]) -> None:
        lab = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), np.uint8)
        values = lab.astype(np.float32)
        self._rarity, self._vote = maps.rarity, np.mean(cuts, axis=0, dtype=np.float32)
        self._down, self._right = (np.linalg.norm(np.diff(values, axis=axis), axis=2) for axis in (0, 1))
        self._usual = float(self._down.mean() + self._right.mean())
        self._colours = np.ravel_multi_index(tuple(np.moveaxis(lab // (256 // LEVELS), 2, 0)), tuple(LEVELS))
        slope = np.maximum(*(np.abs(cv2.Sobel(values, cv2.CV_32F, *axis)).max(axis=2) for axis in ((1, 0), (0, 1))))
        self._edges = slope > np.quantile(slope, 1 - EDGES)
        fine = cv2.blur(np.abs(cv2.Laplacian(values[..., 0], cv2.CV_32F)), (5, 5))
        self._detail = np.searchsorted(np.sort(fine, axis=None), fine) / fine.size
        self._places = [(np.arange(side) + 0.5) / side - 0.5 for side in lab.shape[:2]]

    def figures(self, mask: NDArray[np.bool_]) -> Figures:
        """Those of a mask (H, W) that has pixels on both sides."""
        area, bits = int(mask.sum()), mask.astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(bits, connectivity=4)
        odds = self._odds(mask, area)
        near = (cv2.dilate(bits, NEAR) > 0) & ~mask
        edges_outside = self._edges & (cv2.dilate(bits, BESIDE) == 0)
        centre = [mask.sum(axis=1 - axis) @ self._places[axis] / area for axis in (0, 1)]
        return Figures(
            agreement=2 * (self._vote * mask).sum() / (self._vote.sum() + area),
            largest_part=stats[1:, cv2.CC_STAT_AREA].max() / area,
            outline=self._outline(mask),
            off_centre=np.dot(centre, centre),
            surroundings=odds[near].mean(),
            edges_outside=edges_outside.sum() / max(1, self._edges.sum()),
            detail=self._detail[mask].mean(),
            doubtful=(odds[mask] < 0).mean(),
            rarity=self._rarity[mask].mean() - self._rarity[~mask].mean(),
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

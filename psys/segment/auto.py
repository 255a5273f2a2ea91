"""The `auto` strategy: GrabCut from several initial trimaps, and selection of the best cut.

No initial trimap is good for every image, but cuts from good trimaps agree, since each prior fails differently. The
mean of all cuts is a vote; the vote and the saliency give one more trimap. A linear score of `CutFeatures` selects the
cut: agreement with the vote, contrast with the surroundings, a central position and few components score high.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from psys.segment.cut import contrast_for, cut, rectangle, trimap_of
from psys.segment.saliency import Saliency, otsu, saliency, stretch

LOW = 0.6  # factor of the threshold for one trimap, for objects of which only a part is salient
DISC = 0.25  # radius of the disc in one trimap, as a share of the sides
MARGIN = 0.05  # margin of the rectangle in one trimap, as a share of the sides
SALIENCY_SIDE = 64  # largest shorter side for saliency maps, in pixels
SMALLEST, LARGEST = 0.03, 0.9  # limits of the foreground's share in a candidate cut
HOLE = 0.01  # holes smaller than this share of the image are filled
PART = 0.1  # components smaller than this share of the largest are removed
LEVELS = np.array((16, 32, 32))  # of L, a and b in the colour histograms
MAX_LOG_ODDS = 4.0  # limit for one pixel
EDGES = 0.1  # share of the pixels, those with the largest gradient, that count as edges
NEAR = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (13, 13))  # the surroundings of a mask
ADJACENT = np.ones((3, 3), np.uint8)


class CutFeatures(NamedTuple):
    """Features of a cut from which its score among the cuts of one image is computed."""

    agreement: float  # Dice coefficient with the vote
    largest_part: float  # share of the foreground in the largest component
    outline: float  # mean colour step across the outline, divided by itself plus the mean step in the image
    off_centre: float  # squared distance of the centre of mass from the image's centre, as a share of the sides
    surroundings: float  # mean log odds of nearby background pixels' colours for the foreground
    edges_outside: float  # share of the edges that lie outside the mask
    detail: float  # mean rank of the foreground's detail, 0..1
    doubtful: float  # share of the foreground whose colour is more frequent in the background
    rarity: float  # mean rarity of the foreground minus that of the background


# Fitted by `python -m benchmarks.segment_fit`. Rarity has a negative weight: the vote already contains it.
WEIGHTS = CutFeatures(0.83, 0.45, 0.64, -2.7, -0.13, 0.26, 0.31, -0.13, -0.25)


def find(image: NDArray[np.uint8], iterations: int) -> NDArray[np.bool_]:
    """Foreground (H, W) of an RGB image (H, W, 3)."""
    maps = maps_of(image)
    cuts = all_cuts(image, maps, iterations)
    if not cuts:  # no cut has a plausible size: use the saliency map
        return refined(maps.whole > otsu(maps.whole))
    extractor = FeatureExtractor(image, maps, cuts)
    return max(cuts, key=lambda cut: np.dot(WEIGHTS, extractor.features(cut)))


def all_cuts(image: NDArray[np.uint8], maps: Saliency, iterations: int) -> list[NDArray[np.bool_]]:
    """The cuts (H, W) of an image (H, W, 3) from all trimaps, without nearly empty and nearly full ones."""
    lab = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), np.uint8)
    contrast = contrast_for(image.shape)

    def candidates(trimaps: list[NDArray[np.uint8]]) -> list[NDArray[np.bool_]]:
        cuts = (refined(cut(lab, trimap, contrast, iterations)) for trimap in trimaps)
        return [mask for mask in cuts if SMALLEST < mask.mean() < LARGEST]

    cuts = candidates(_trimaps(maps))
    vote = np.mean(cuts, axis=0) if cuts else maps.whole
    return cuts + candidates([trimap_of(stretch(vote + maps.whole / 2) > 0.5, 1)])


def maps_of(image: NDArray[np.uint8]) -> Saliency:
    """Saliency maps of an image (H, W, 3), computed on a reduced image."""
    scale = SALIENCY_SIDE / min(image.shape[:2])
    small = image if scale >= 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return saliency(np.asarray(small, np.uint8)).resized(*image.shape[:2])


def _without_small_parts(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest component and components of comparable size."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0  # the background
    return np.asarray((areas >= max(1, PART * areas.max()))[parts]) if count > 1 else mask


def refined(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest component and components of comparable size, with small holes filled."""
    mask = _without_small_parts(mask)
    count, parts, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < HOLE * mask.size
    small[0] = True  # the foreground
    return np.asarray(small[parts]) if count > 1 else mask


def _trimaps(maps: Saliency) -> list[NDArray[np.uint8]]:
    shape = maps.whole.shape
    salient = (maps.whole, maps.anywhere, maps.barrier, maps.rarity, maps.focus, maps.combined)
    probable = [values > otsu(values) for values in salient]
    probable += [maps.whole > LOW * otsu(maps.whole), _disc(*shape)]
    return [*(trimap_of(mask, 1) for mask in probable), rectangle(shape, MARGIN)]


def _disc(height: int, width: int) -> NDArray[np.bool_]:
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    return np.asarray(np.hypot(y[:, None], x) < DISC)


class FeatureExtractor:
    """Computes the features of the cuts of one image (H, W, 3)."""

    def __init__(self, image: NDArray[np.uint8], maps: Saliency, cuts: list[NDArray[np.bool_]]) -> None:
        lab = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), np.uint8)
        values = lab.astype(np.float32)
        self._rarity, self._vote = maps.rarity, np.mean(cuts, axis=0, dtype=np.float32)
        self._down, self._right = (np.linalg.norm(np.diff(values, axis=axis), axis=2) for axis in (0, 1))
        self._mean_step = float(self._down.mean() + self._right.mean())
        self._colours = np.ravel_multi_index(tuple(np.moveaxis(lab // (256 // LEVELS), 2, 0)), tuple(LEVELS))
        gradient = np.maximum(*(np.abs(cv2.Sobel(values, cv2.CV_32F, *axis)).max(axis=2) for axis in ((1, 0), (0, 1))))
        self._edges = gradient > np.quantile(gradient, 1 - EDGES)
        fine = cv2.blur(np.abs(cv2.Laplacian(values[..., 0], cv2.CV_32F)), (5, 5))
        self._detail = np.searchsorted(np.sort(fine, axis=None), fine) / fine.size
        self._positions = [(np.arange(side) + 0.5) / side - 0.5 for side in lab.shape[:2]]

    def features(self, mask: NDArray[np.bool_]) -> CutFeatures:
        """Features of a mask (H, W) with both foreground and background pixels."""
        area, bits = int(mask.sum()), mask.astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(bits, connectivity=4)
        odds = self._odds(mask, area)
        near = (cv2.dilate(bits, NEAR) > 0) & ~mask
        edges_outside = self._edges & (cv2.dilate(bits, ADJACENT) == 0)
        centre = [mask.sum(axis=1 - axis) @ self._positions[axis] / area for axis in (0, 1)]
        return CutFeatures(
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
        """Mean colour step across the outline, divided by itself plus the mean step in the image, 0..1."""
        down, right = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
        length = np.count_nonzero(down) + np.count_nonzero(right)
        along = float(self._down[down].sum() + self._right[right].sum()) / length
        return along / (along + self._mean_step + 1e-6)

    def _odds(self, mask: NDArray[np.bool_], area: int) -> NDArray[np.float64]:
        """Log odds (H, W) of each pixel's colour for the foreground, by histograms of foreground and background."""
        sides = ((self._colours[mask], area), (self._colours[~mask], mask.size - area))
        inside, outside = (
            np.log((np.bincount(colours, minlength=LEVELS.prod())[self._colours] + 0.3) / (count + 60))
            for colours, count in sides
        )
        return np.asarray((inside - outside).clip(-MAX_LOG_ODDS, MAX_LOG_ODDS))

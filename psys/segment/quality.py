"""How good a mask looks without its truth, and which masks may serve as foreground."""

from typing import Annotated, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from psys.config import Config

LEVELS = 8  # of each channel in the histograms of colour

Share = Annotated[float, Field(ge=0, le=1)]


class Quality(NamedTuple):
    """Figures of one mask, each 0..1."""

    share: float
    """Foreground pixels by all pixels."""
    border_contact: float
    """The image's outermost pixels that are foreground, by all of them: an object that is cut off, or no object."""
    compactness: float
    """Isoperimetric quotient 4 pi A / P^2 (Polsby, Popper 1991): 1 for a disc, near 0 for what is thin or in pieces."""
    colour_separation: float
    """Squared Hellinger distance of the colour histograms of both sides: 0 where they are alike, 1 where disjoint."""


QUALITY = Quality._fields  # the columns of a store's quality


class GateConfig(Config):
    """Bounds of the figures; a mask outside any of them is degenerate and never used as a foreground image."""

    min_share: Share = 0.02
    """Below this share of foreground pixels a mask counts as empty."""
    max_share: Share = 0.95
    """Above this share of foreground pixels a mask counts as the whole image."""
    max_border_contact: Share = 0.9
    """Above this border contact a mask counts as the surroundings of something instead of the thing."""
    min_compactness: Share = 0.0
    """Below this compactness a mask counts as crumbs."""
    min_colour_separation: Share = 0.0
    """Below this colour separation a mask counts as a guess."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min_share > self.max_share:
            raise ValueError("'min_share' must not be above 'max_share'")
        return self


def measure(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Quality:
    """The figures of a mask (H, W) of an RGB image (H, W, 3) uint8; all 0 for an empty one, except that a mask of
    everything has full share and border contact.

    Raises ValueError if the sizes differ.
    """
    if image.shape != (*mask.shape, 3):
        raise ValueError(f"expected a mask of the size of its image, got {mask.shape} for {image.shape}")
    area = int(mask.sum())
    frame = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    return Quality(area / mask.size, float(frame.mean()), _compactness(mask, area), colour_separation(image, mask))


def _compactness(mask: NDArray[np.bool_], area: int) -> float:
    closed = np.pad(mask, 1)
    crossings = np.count_nonzero(closed[1:] != closed[:-1]) + np.count_nonzero(closed[:, 1:] != closed[:, :-1])
    # Steps along rows and columns overstate a length by 4 / pi in the mean over all directions (Cauchy, Crofton).
    perimeter = np.pi / 4 * crossings
    return min(1.0, 4 * np.pi * area / perimeter**2) if area else 0.0


def colour_separation(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """1 minus the Bhattacharyya coefficient of the histograms of foreground and background, 8 levels a channel."""
    levels = (image >> 5).astype(np.int64)
    bins = (levels[..., 0] * LEVELS + levels[..., 1]) * LEVELS + levels[..., 2]
    inside, outside = (np.bincount(bins[side], minlength=LEVELS**3) for side in (mask, ~mask))
    if not inside.any() or not outside.any():
        return 0.0
    return float(1 - np.sqrt(inside / inside.sum() * (outside / outside.sum())).sum())


def is_usable(quality: NDArray[np.float32], gate: GateConfig) -> NDArray[np.bool_]:
    """True (N,) where the figures (N, 4), columns as in `Quality`, are within every bound of the gate."""
    share, contact, compactness, separation = np.asarray(quality, np.float32).reshape(-1, len(Quality._fields)).T
    return (
        (share >= gate.min_share)
        & (share <= gate.max_share)
        & (contact <= gate.max_border_contact)
        & (compactness >= gate.min_compactness)
        & (separation >= gate.min_colour_separation)
    )

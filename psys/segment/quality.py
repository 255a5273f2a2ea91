"""Quality metrics of a mask that need no ground truth, and the gate that rejects degenerate masks."""

from typing import Annotated, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from psys.config import Config

LEVELS = 8  # of each channel in the colour histograms

Share = Annotated[float, Field(ge=0, le=1)]


class Quality(NamedTuple):
    """Quality metrics of one mask, each 0..1."""

    share: float
    """Foreground pixels divided by all pixels."""
    border_contact: float
    """Foreground pixels on the image's border divided by all border pixels; large if the object is cropped."""
    compactness: float
    """Isoperimetric quotient 4 pi A / P^2 (Polsby, Popper 1991): 1 for a disc, near 0 for thin or scattered shapes."""
    colour_separation: float
    """Squared Hellinger distance of foreground and background colour histograms: 0 if equal, 1 if disjoint."""


QUALITY = Quality._fields  # the columns of a store's quality


class GateConfig(Config):
    """Limits of the quality metrics; a mask outside any limit is degenerate and not used by foreground modes."""

    min_share: Share = 0.02
    """Smallest share of foreground pixels; a smaller mask counts as empty."""
    max_share: Share = 0.95
    """Largest share of foreground pixels; a larger mask counts as the whole image."""
    max_border_contact: Share = 0.9
    """Largest border contact; above it a mask counts as background."""
    min_compactness: Share = 0.0
    """Smallest compactness; below it a mask counts as scattered fragments."""
    min_colour_separation: Share = 0.0
    """Smallest colour separation; below it a mask counts as arbitrary."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min_share > self.max_share:
            raise ValueError("'min_share' must not be above 'max_share'")
        return self


def measure(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Quality:
    """Quality metrics of a mask (H, W) of an RGB image (H, W, 3) uint8; an empty mask has 0 in every metric.

    Raises ValueError if the sizes differ.
    """
    if image.shape != (*mask.shape, 3):
        raise ValueError(f"expected a mask of the image's size, got {mask.shape} for {image.shape}")
    area = int(mask.sum())
    frame = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    return Quality(area / mask.size, float(frame.mean()), _compactness(mask, area), colour_separation(image, mask))


def _compactness(mask: NDArray[np.bool_], area: int) -> float:
    closed = np.pad(mask, 1)
    crossings = np.count_nonzero(closed[1:] != closed[:-1]) + np.count_nonzero(closed[:, 1:] != closed[:, :-1])
    # Counting steps along rows and columns overestimates a length by 4 / pi on average (Cauchy, Crofton).
    perimeter = np.pi / 4 * crossings
    return min(1.0, 4 * np.pi * area / perimeter**2) if area else 0.0


def colour_separation(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """1 - Bhattacharyya coefficient of the histograms of foreground and background, `LEVELS` levels per channel."""
    levels = (image >> 5).astype(np.int64)
    bins = (levels[..., 0] * LEVELS + levels[..., 1]) * LEVELS + levels[..., 2]
    inside, outside = (np.bincount(bins[side], minlength=LEVELS**3) for side in (mask, ~mask))
    if not inside.any() or not outside.any():
        return 0.0
    return float(1 - np.sqrt(inside / inside.sum() * (outside / outside.sum())).sum())


def is_usable(quality: NDArray[np.float32], gate: GateConfig) -> NDArray[np.bool_]:
    """True (N,) where the metrics (N, 4), columns as in `Quality`, are within every limit of the gate."""
    share, contact, compactness, separation = np.asarray(quality, np.float32).reshape(-1, len(Quality._fields)).T
    return (
        (share >= gate.min_share)
        & (share <= gate.max_share)
        & (contact <= gate.max_border_contact)
        & (compactness >= gate.min_compactness)
        & (separation >= gate.min_colour_separation)
    )

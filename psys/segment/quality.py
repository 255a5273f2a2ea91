"""Which masks may serve as foreground: the gate in front of foreground training."""

from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from psys.config import Config

QUALITY = ("share",)  # the columns of a store's quality
Share = Annotated[float, Field(ge=0, le=1)]


class GateConfig(Config):
    """Bounds of the foreground share; a mask outside them is degenerate and never used as a foreground image."""

    min_share: Share = 0.02
    """Below this share of foreground pixels a mask counts as empty."""
    max_share: Share = 0.95
    """Above this share of foreground pixels a mask counts as the whole image."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min_share > self.max_share:
            raise ValueError("'min_share' must not be above 'max_share'")
        return self


def foreground_share(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Share of foreground pixels of each mask, (..., H, W) -> (...), 0..1."""
    return np.asarray(masks.mean(axis=(-2, -1), dtype=np.float64), np.float32)


def is_usable(shares: NDArray[np.float32], gate: GateConfig) -> NDArray[np.bool_]:
    """True where a mask with this foreground share passes the gate; same shape as `shares`."""
    return (shares >= gate.min_share) & (shares <= gate.max_share)

"""What servers do to a late gradient before the optimizer sees it: the settings, and what needs no vector."""

from typing import Literal, Self

from pydantic import Field, model_validator

from psys.config import Config


class CompensationConfig(Config):
    """What servers do to a late gradient, computed on parameters that have moved since.

    `delay` and `gap_aware` need memory: a copy of what each slot of each worker received.
    """

    staleness_power: float = Field(0.0, ge=0, le=2)
    """a gradient is multiplied by staleness^-power (Zhang et al. 2016); 0: not at all; 1: divided by its staleness"""
    anneal_share: float = Field(0.0, ge=0, le=1)
    """share of the epochs over which the power falls linearly to 0; 0: it stays"""
    delay: Literal["none", "constant", "adaptive"] = "none"
    """correct gradients for the parameters' move since they were read (DC-ASGD, Zheng et al. 2017)"""
    delay_strength: float | None = Field(None, ge=0)
    """lambda of `delay`; by default the paper's: 0.04 for constant, 2 for adaptive"""
    gap_aware: bool | None = None
    """divide elements by 1 + the move of the parameter in typical steps (Barkai et al. 2020); default: docs/rates.md"""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.delay == "none" and self.delay_strength is not None:
            raise ValueError("'delay_strength' needs 'delay' constant or adaptive")
        if self.anneal_share and not self.staleness_power:
            raise ValueError("'anneal_share' needs 'staleness_power' above 0")
        return self

    @property
    def strength(self) -> float:
        """Lambda of the delay compensation; 0: none."""
        if self.delay_strength is not None:
            return self.delay_strength
        return {"none": 0.0, "constant": 0.04, "adaptive": 2.0}[self.delay]

    @property
    def needs_reads(self) -> bool:
        """Whether a gradient is compared with the parameters that its worker read."""
        return self.strength > 0 or bool(self.gap_aware)

    def state_names(self) -> tuple[str, ...]:
        """Names of the vectors kept for it: running means of the squares of gradients, and of the momentum vector."""
        gradients = ("gradient_squares",) if self.delay == "adaptive" else ()
        return (*gradients, "momentum_squares") if self.gap_aware else gradients

    def damping(self, staleness: int, progress: float) -> float:
        """What a gradient of that staleness is multiplied by when `progress` (0 to 1) of the epochs are applied.

        Source: Zhang et al. 2016, "Staleness-aware Async-SGD for Distributed Deep Learning", with power 1.
        """
        left = max(0.0, 1 - progress / self.anneal_share) if self.anneal_share else 1.0
        return float(max(1, staleness) ** -(self.staleness_power * left))


NO_COMPENSATION = CompensationConfig()
"""Late gradients are applied as the others."""

"""The learning rate as a function of the run's progress; the server owns it, and grants it to workers' own steps."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from psys.config import Config

Scaling = Literal["none", "sqrt", "linear", "capped"]
LINEAR_UP_TO = 8
"""gradients of an update for which the linear rule was measured to be the best"""


class ScheduleConfig(Config):
    """How the learning rate moves through the run."""

    kind: Literal["constant", "cosine", "table"] = "cosine"
    """constant: one rate; cosine: half a cosine down to zero (Loshchilov & Hutter 2017); table: steps"""
    learning_rate: float = Field(0.1, gt=0)
    """the rate of one worker's batch, at its highest; for `table`, the rate before its first row"""
    scaling: Scaling | None = None
    """of the rate of an update with the mean of n gradients: times 1, the root of n, n, or n up to 8 (docs/rates.md)"""
    warmup_epochs: float = Field(0.0, ge=0)
    """epochs of linear rise from zero (Goyal et al. 2017)"""
    table: tuple[tuple[float, float], ...] = ()
    """rows (epochs done, rate from there on), rising in epochs"""

    @model_validator(mode="after")
    def _table_fits_kind(self) -> Self:
        if (self.kind == "table") != bool(self.table):
            raise ValueError("'table' rows go with kind 'table', and only with it")
        starts = [epoch for epoch, _ in self.table]
        if starts != sorted(set(starts)):
            raise ValueError("'table' rows must rise in epochs")
        if any(rate <= 0 for _, rate in self.table):
            raise ValueError("'table' rates must be above 0")
        return self


def rate_factor(scaling: Scaling | None, gradients: float) -> float:
    """What the rate of one batch is multiplied by for the mean gradient of so many batches; None: by 1.

    linear: the mean of n gradients moves the parameters as far as n updates (Goyal et al. 2017); capped: the same for
    up to LINEAR_UP_TO; sqrt: the noise of an update stays as large (Krizhevsky 2014, Hoffer et al. 2017).
    """
    match scaling:
        case "sqrt":
            return math.sqrt(gradients)
        case "linear":
            return gradients
        case "capped":
            return min(gradients, LINEAR_UP_TO)
    return 1.0


def highest_rate(config: ScheduleConfig, gradients: float = 1) -> float:
    """The highest rate that updates with the mean of so many gradients reach."""
    rates = [rate for _, rate in config.table]
    if not rates or config.table[0][0] > 0:
        rates.append(config.learning_rate)
    highest = max(rates)
    return highest * rate_factor(config.scaling, gradients)


def learning_rate(config: ScheduleConfig, epochs_done: float, epochs: int, gradients: float = 1) -> float:
    """Rate of the update with the mean of so many gradients when `epochs_done` (fractional) of `epochs` are applied."""
    rate = config.learning_rate
    if config.kind == "table":
        rate = next((r for start, r in reversed(config.table) if epochs_done >= start), rate)
    rate *= rate_factor(config.scaling, gradients)
    warmup = config.warmup_epochs
    if epochs_done < warmup:
        # The first update has done nothing yet: it must not have rate zero.
        return rate * max(epochs_done / warmup, 0.01)
    if config.kind == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * (epochs_done - warmup) / max(epochs - warmup, 1e-9)))
    return rate

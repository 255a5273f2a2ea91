"""The optimizer's settings, and how far it will carry the parameters in the updates to come. Imports no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from psys.config import Config


class OptimizerConfig(Config):
    """How a mean gradient becomes an update (torch.optim's rules; the rate comes from `schedule`)."""

    kind: Literal["sgd", "rmsprop", "adam"] = "sgd"
    """the update rule"""
    momentum: float = Field(0.9, ge=0, lt=1)
    """of sgd and rmsprop"""
    nesterov: bool = True
    """Nesterov momentum; of sgd"""
    weight_decay: float = Field(0.0, ge=0)
    """added to the gradient as decay * weight; spares biases and batch norm"""
    smoothing: float = Field(0.99, gt=0, lt=1)
    """decay of the running mean of squares: rmsprop's alpha, adam's second beta"""
    look_ahead: bool = True
    """compute late gradients at the parameters predicted for the time they are applied; of sgd"""
    momentum_per_worker: bool | None = None
    """a momentum vector for each worker (DANA, Hakimi et al. 2019), each in memory; by default see docs/rates.md"""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.kind == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("'nesterov' needs 'momentum' above 0")
        return self

    @model_validator(mode="after")
    def _momentum_per_worker_is_of_nesterov(self) -> Self:
        if self.momentum_per_worker and not (self.kind == "sgd" and self.nesterov):
            raise ValueError("'momentum_per_worker' needs 'kind' sgd with 'nesterov'")
        return self

    def state_names(self) -> tuple[str, ...]:
        """Names of the vectors that the rule keeps beside the parameters."""
        names = {"sgd": (), "rmsprop": ("squares",), "adam": ("means", "squares")}[self.kind]
        return (*names, "momentum") if self.kind != "adam" and self.momentum else names

    def momentum_look_ahead(self, updates: int) -> float:
        """How far momentum alone carries the parameters in `updates` updates, in rates times the momentum vector.

        A late gradient is computed at the parameters moved by it (SpecTrain, Chen et al. 2018; DANA, Hakimi et al.
        2019). Weight decay is left out; 0 where the optimizer does not look ahead.

        With a momentum vector for each worker it is 0 as well: the parameters themselves are DANA's prediction (see
        docs/compensation.md).
        """
        if not self._looks_ahead:
            return 0.0
        return self._decays(updates) * (self.momentum if self.nesterov else 1)

    def gradient_look_ahead(self, updates: int) -> float:
        """How far one gradient carries the parameters in `updates` updates, the first of which applies it.

        In rates times the gradient; 0 where the optimizer does not look ahead.
        """
        if not self._looks_ahead:
            return 0.0
        return 1 + self._decays(updates if self.nesterov else updates - 1)

    @property
    def _looks_ahead(self) -> bool:
        return self.kind == "sgd" and self.look_ahead and not self.momentum_per_worker

    def _decays(self, count: int) -> float:
        """momentum + momentum^2 + ... + momentum^count"""
        return self.momentum * (1 - self.momentum**count) / (1 - self.momentum)

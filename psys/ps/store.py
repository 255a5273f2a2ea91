"""One server's slice of the flat parameters with the optimizer on it: gradients in, immutable snapshots out."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, RMSprop

from psys.config import Config


class OptimizerConfig(Config):
    """How a mean gradient becomes an update (torch.optim's rules; the rate comes from `schedule`)."""

    kind: Literal["sgd", "rmsprop", "adam"] = "sgd"
    """the update rule"""
    momentum: float = Field(0.9, ge=0, lt=1)
    """of sgd and rmsprop"""
    nesterov: bool = True
    """look-ahead momentum; of sgd"""
    weight_decay: float = Field(0.0, ge=0)
    """added to the gradient as decay * weight; spares biases and batch norm"""
    smoothing: float = Field(0.99, gt=0, lt=1)
    """decay of the running mean of squares: rmsprop's alpha, adam's second beta"""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.kind == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("'nesterov' needs 'momentum' above 0")
        return self

    def build(self, decayed: nn.Parameter, spared: nn.Parameter) -> Optimizer:
        """The torch optimizer over the decayed and the spared part of a flat vector."""
        groups = [
            {"params": [decayed], "weight_decay": self.weight_decay},
            {"params": [spared], "weight_decay": 0.0},
        ]
        match self.kind:
            case "sgd":
                return SGD(groups, lr=0.0, momentum=self.momentum, nesterov=self.nesterov, foreach=True)
            case "rmsprop":
                return RMSprop(groups, lr=0.0, alpha=self.smoothing, momentum=self.momentum, foreach=True)
            case "adam":
                return Adam(groups, lr=0.0, betas=(0.9, self.smoothing), foreach=True)


class Snapshot(NamedTuple):
    """Parameters and batch-norm statistics of one version; shared by all who ask, never written again."""

    version: int
    parameters: Tensor  # (n,) float32
    statistics: Tensor  # (m,) float32


class Contribution(NamedTuple):
    """What one pushed batch adds to an update."""

    gradient: Tensor  # (n,) float32, mean over the batch
    statistics: Tensor  # (m,) float32, the worker's running statistics after the batch
    weight: int  # samples in the batch


class ParameterStore:
    """A slice of the flat parameter vector, the optimizer's state for it, and how many updates it has seen.

    parameters: (n,) float32, of which the first `decayed` are subject to weight decay; statistics: (m,) float32.
    Everything in one call of `apply` becomes one new version; a version is visible whole or not at all.
    """

    def __init__(self, parameters: Tensor, decayed: int, statistics: Tensor, optimizer: OptimizerConfig) -> None:
        self.version = 0
        self._parameters = parameters.detach().clone()
        self._statistics = statistics.detach().clone()
        self._gradient = torch.zeros_like(self._parameters)
        parts = [nn.Parameter(part) for part in (self._parameters[:decayed], self._parameters[decayed:])]
        for part, gradient in zip(parts, (self._gradient[:decayed], self._gradient[decayed:]), strict=True):
            part.grad = gradient
        self._optimizer = optimizer.build(*parts)
        self._snapshot: Snapshot | None = None

    def apply(self, contributions: Sequence[Contribution], learning_rate: float, statistics_share: float) -> None:
        """One optimizer step with the sample-weighted mean gradient, summed in the order given.

        The running statistics move towards the contributions' mean by `statistics_share`: 1 replaces them.
        """
        samples = sum(c.weight for c in contributions)
        statistics = torch.zeros_like(self._statistics)
        self._gradient.zero_()
        for contribution in contributions:
            share = contribution.weight / samples
            self._gradient.add_(contribution.gradient, alpha=share)
            statistics.add_(contribution.statistics, alpha=share)
        self._statistics.lerp_(statistics, statistics_share)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self.version += 1
        self._snapshot = None

    def snapshot(self) -> Snapshot:
        """The present version, copied once however many ask for it."""
        if self._snapshot is None:
            self._snapshot = Snapshot(self.version, self._parameters.clone(), self._statistics.clone())
        return self._snapshot

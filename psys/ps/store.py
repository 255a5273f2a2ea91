"""One server's slice of the flat parameters with the optimizer on it: gradients in, immutable snapshots out."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.optim.rmsprop import rmsprop

from psys.config import Config
from psys.ps.partition import LINE, partition

_PIECE = 1 << 16  # elements, about


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
    look_ahead: bool = True
    """late gradients are computed where the parameters will be, as far as that is known already; of sgd"""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.kind == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("'nesterov' needs 'momentum' above 0")
        return self

    def state(self, numel: int) -> dict[str, Tensor]:
        """What the rule remembers of `numel` parameters, at the start: vectors (numel,) float32 by name."""
        names = {"sgd": [], "rmsprop": ["squares"], "adam": ["means", "squares"]}[self.kind]
        if self.kind != "adam" and self.momentum:
            names.append("momentum")
        return {name: torch.zeros(numel) for name in names}

    def drift(self, updates: int) -> float:
        """How far momentum alone carries the parameters in `updates` updates, in rates times the momentum vector.

        So a late gradient fits the parameters that it will find (SpecTrain, Chen et al. 2018; DANA, Hakimi et al.
        2019). Without weight decay; 0 where the optimizer does not look ahead.
        """
        if self.kind != "sgd" or not self.look_ahead:
            return 0.0
        return self._decays(updates) * (self.momentum if self.nesterov else 1)

    def reach(self, updates: int) -> float:
        """How far a gradient carries them in `updates` updates, its own the first, in rates times the gradient."""
        if self.kind != "sgd" or not self.look_ahead:
            return 0.0
        return 1 + self._decays(updates if self.nesterov else updates - 1)

    def _decays(self, count: int) -> float:
        """momentum + momentum^2 + ... + momentum^count"""
        return self.momentum * (1 - self.momentum**count) / (1 - self.momentum)

    def step(
        self, parameters: Tensor, gradient: Tensor, state: dict[str, Tensor], done: int, rate: float, decay: float
    ) -> None:
        """Move `parameters` and their `state`, in place, by one gradient after `done` others; all vectors are (n,)."""
        # What torch.optim's classes call in the end: they import its compiler, 75 MB and 1.5 s, and take longer than
        # the step itself of a small model.
        match self.kind:
            case "sgd":
                torch._fused_sgd_(
                    [parameters],
                    [gradient],
                    [state["momentum"]] if self.momentum else [],
                    lr=rate,
                    weight_decay=decay,
                    momentum=self.momentum,
                    nesterov=self.nesterov,
                    dampening=0.0,
                    maximize=False,
                    is_first_step=False,
                )
            case "rmsprop":  # torch has no fused one
                rmsprop(
                    [parameters],
                    [gradient],
                    [state["squares"]],
                    [],
                    [state["momentum"]] if self.momentum else [],
                    [torch.tensor(float(done))],
                    foreach=True,
                    lr=rate,
                    weight_decay=decay,
                    momentum=self.momentum,
                    alpha=self.smoothing,
                    eps=1e-8,
                    centered=False,
                )
            case "adam":
                torch._fused_adam_(
                    [parameters],
                    [gradient],
                    [state["means"]],
                    [state["squares"]],
                    [],
                    [torch.tensor(done + 1.0)],
                    lr=rate,
                    weight_decay=decay,
                    beta1=0.9,
                    beta2=self.smoothing,
                    eps=1e-8,
                    amsgrad=False,
                    maximize=False,
                )


class Snapshot(NamedTuple):
    """Parameters and batch-norm statistics of one version; shared by all who ask, never written again."""

    version: int
    parameters: Tensor  # (n,) float32
    statistics: Tensor  # (m,) float32


class StoreState(NamedTuple):
    """All that a slice is at one version, for a checkpoint; nobody writes to it."""

    version: int
    parameters: Tensor  # (n,) float32
    statistics: Tensor  # (m,) float32
    optimizer: dict[str, Tensor]  # (n,) float32 each, see OptimizerConfig.state


class Contribution(NamedTuple):
    """What one pushed batch adds to an update."""

    gradient: Tensor  # (n,) of any float dtype, mean over the batch; `apply` may write over it
    statistics: Tensor  # (m,) float32, the worker's running statistics after the batch
    share: float  # of the update's samples; those of an update add up to 1


class Piece(NamedTuple):
    """A stretch of the vectors that is stepped alike and stays in a core's cache; views, made once."""

    parameters: Tensor  # (k,) float32
    state: dict[str, Tensor]  # (k,) float32 each, see OptimizerConfig.state
    decay: float


class ParameterStore:
    """A slice of the flat parameter vector, the optimizer's state for it, and how many updates it has seen.

    parameters: (n,) float32, of which the first `decayed` are subject to weight decay; statistics: (m,) float32.
    What one step is made of becomes one new version.
    """

    def __init__(self, parameters: Tensor, decayed: int, statistics: Tensor, optimizer: OptimizerConfig) -> None:
        self.version = 0
        self.parameters = parameters.detach().clone()
        self.statistics = statistics.detach().clone()
        self._optimizer = optimizer
        self._state = optimizer.state(len(parameters))
        numel = len(parameters)
        if not optimizer.weight_decay:
            decayed = numel  # all are stepped alike
        # The line in which decay ends is rounded by itself: those after it are whole then, wherever the slice begins.
        line_end = min(-(-decayed // LINE) * LINE, numel)
        starts = [part.start for part in partition(numel, max(1, round(numel / _PIECE)))]
        bounds = list(pairwise(sorted({*starts, decayed, line_end, numel})))
        self._sizes = [stop - start for start, stop in bounds]
        decays = [optimizer.weight_decay if start < decayed else 0.0 for start, _ in bounds]
        states = {name: self.split(vector) for name, vector in self._state.items()}
        self.pieces = [
            Piece(values, {name: parts[number] for name, parts in states.items()}, decay)
            for number, (values, decay) in enumerate(zip(self.split(self.parameters), decays, strict=True))
        ]
        self._snapshot: Snapshot | None = None

    def begin(
        self, contributions: Sequence[Contribution], learning_rate: float, statistics_share: float
    ) -> Callable[[int], None]:
        """One optimizer step with the mean gradient of the contributions (one or more), summed in the order given.

        The running statistics move at once, towards the contributions' mean by `statistics_share`: 1 replaces them. The
        parameters are stepped by what is returned: it must be called once with the number of each of `pieces`, which
        have nothing to do with each other, before anything is read of them. Steps that follow may begin meanwhile, if
        each piece sees all in their order. The sum is made in the first gradient's memory if it is float32: no big
        vector is copied, or read twice from memory.
        """
        (first, statistics, share), *others = contributions
        if others:
            statistics = statistics * share
        for other in others:
            statistics.add_(other.statistics, alpha=other.share)
        self.statistics.lerp_(statistics, statistics_share)
        gradients = self.split(first)
        summands = [(self.split(other.gradient), other.share) for other in others]
        done = self.version

        def step(number: int) -> None:
            gradient, piece = gradients[number].float(), self.pieces[number]
            if share != 1:
                gradient.mul_(share)
            for parts, part_share in summands:
                gradient.add_(parts[number].float(), alpha=part_share)
            self._optimizer.step(piece.parameters, gradient, piece.state, done, learning_rate, piece.decay)

        self.version += 1
        self._snapshot = None
        return step

    def apply(self, contributions: Sequence[Contribution], learning_rate: float, statistics_share: float) -> None:
        """The whole of such a step."""
        step = self.begin(contributions, learning_rate, statistics_share)
        for number in range(len(self.pieces)):
            step(number)

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Views of a vector (n,), one for each of `pieces`."""
        return vector.split_with_sizes(self._sizes)

    def ahead(self, drift: float, out: Tensor) -> Tensor:
        """The parameters as momentum will have carried them on by `drift`: `out`, filled; themselves if that is 0."""
        if not drift:
            return self.parameters
        return torch.sub(self.parameters, self._state["momentum"], alpha=drift, out=out)

    def piece_ahead(self, number: int, drift: float, out: Tensor) -> None:
        """Fill `out` with one of `pieces` so."""
        piece = self.pieces[number]
        if drift:
            torch.sub(piece.parameters, piece.state["momentum"], alpha=drift, out=out)
        else:
            out.copy_(piece.parameters)

    def snapshot(self) -> Snapshot:
        """The present version, copied once however many ask for it."""
        if self._snapshot is None:
            self._snapshot = Snapshot(self.version, self.parameters.clone(), self.statistics.clone())
        return self._snapshot

    def state(self) -> StoreState:
        """A copy of everything."""
        optimizer = {name: vector.clone() for name, vector in self._state.items()}
        return StoreState(self.version, self.parameters.clone(), self.statistics.clone(), optimizer)

    def restore(self, state: StoreState) -> None:
        """Become what `state` says, in place. Raises ValueError if it is another model's or optimizer's."""
        mine = {"parameters": self.parameters, "statistics": self.statistics, **self._state}
        other = {"parameters": state.parameters, "statistics": state.statistics, **state.optimizer}
        if {name: vector.shape for name, vector in mine.items()} != {name: v.shape for name, v in other.items()}:
            sizes = ", ".join(f"{name} {len(vector)}" for name, vector in other.items())
            raise ValueError(f"not of this model and optimizer: it has {sizes}")
        for name, vector in mine.items():
            vector.copy_(other[name])
        self.version, self._snapshot = state.version, None

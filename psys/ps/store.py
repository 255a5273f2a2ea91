"""One slice of the flat parameter vector with its optimizer: gradients in, new versions out."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.rmsprop import rmsprop

from psys.ps.optimizer import OptimizerConfig
from psys.ps.partition import CACHE_LINE, partition

_BLOCK = 1 << 16  # elements, about


class SliceState(NamedTuple):
    """A copy of a slice at one version. `optimizer` is empty in a snapshot."""

    version: int
    parameters: Tensor  # (n,) float32
    statistics: Tensor  # (m,) float32
    optimizer: dict[str, Tensor]  # (n,) float32 each, see OptimizerConfig.state_names

    def vectors(self) -> dict[str, Tensor]:
        """All vectors by name; `parameters` and `statistics` come first."""
        return {"parameters": self.parameters, "statistics": self.statistics, **self.optimizer}


class Contribution(NamedTuple):
    """What one pushed batch adds to an update."""

    gradient: Tensor  # (n,) of any float dtype, mean over the batch; the update may overwrite it
    statistics: Tensor  # (m,) float32, the worker's running statistics after the batch
    share: float  # of the update's samples; the shares of an update add up to 1


class Block(NamedTuple):
    """A stretch of the vectors that is stepped alike and fits a core's cache; views, made once."""

    parameters: Tensor  # (k,) float32
    state: dict[str, Tensor]  # (k,) float32 each, see OptimizerConfig.state_names
    decay: float


class ParameterStore:
    """A slice of the flat parameter vector, the optimizer's vectors for it, and the number of updates applied.

    parameters: (n,) float32, of which the first `decayed` are subject to weight decay; statistics: (m,) float32.
    """

    def __init__(self, parameters: Tensor, decayed: int, statistics: Tensor, optimizer: OptimizerConfig) -> None:
        self.version = 0
        self.parameters = parameters.detach().clone()
        self.statistics = statistics.detach().clone()
        self._optimizer = optimizer
        numel = len(parameters)
        self._state = {name: torch.zeros(numel) for name in optimizer.state_names()}
        if not optimizer.weight_decay:
            decayed = numel  # all elements are stepped alike
        # The cache line in which decay ends is a block of its own: the lines after it are then whole lines, wherever
        # the slice begins.
        line_end = min(-(-decayed // CACHE_LINE) * CACHE_LINE, numel)
        starts = [part.start for part in partition(numel, max(1, round(numel / _BLOCK)))]
        bounds = list(pairwise(sorted({*starts, decayed, line_end, numel})))
        self._sizes = [stop - start for start, stop in bounds]
        decays = [optimizer.weight_decay if start < decayed else 0.0 for start, _ in bounds]
        states = {name: self.split(vector) for name, vector in self._state.items()}
        self.blocks = [
            Block(values, {name: parts[number] for name, parts in states.items()}, decay)
            for number, (values, decay) in enumerate(zip(self.split(self.parameters), decays, strict=True))
        ]

    def begin_update(
        self, contributions: Sequence[Contribution], learning_rate: float, statistics_share: float
    ) -> Callable[[int], None]:
        """Begin one optimizer step with the mean gradient of the contributions (one or more), summed in their order.

        The running statistics move at once, towards the contributions' mean by `statistics_share`: 1 replaces them. The
        returned function steps the parameters: it must be called once with the number of each of `blocks`, in any
        order and from any threads, before the parameters are read. Other updates may begin meanwhile if each block sees
        all updates in order. The sum is made in the first gradient's memory if that is float32: no large vector is
        copied, or read twice from memory.
        """
        (first, statistics, share), *others = contributions
        if others:
            statistics = statistics * share
        for other in others:
            statistics.add_(other.statistics, alpha=other.share)
        self.statistics.lerp_(statistics, statistics_share)
        gradients = self.split(first)
        summands = [(self.split(other.gradient), other.share) for other in others]
        updates_before = self.version

        def step_block(number: int) -> None:
            gradient, block = gradients[number].float(), self.blocks[number]
            if share != 1:
                gradient.mul_(share)
            for parts, part_share in summands:
                gradient.add_(parts[number].float(), alpha=part_share)
            _apply_gradient(
                self._optimizer, block.parameters, gradient, block.state, updates_before, learning_rate, block.decay
            )

        self.version += 1
        return step_block

    def update(self, contributions: Sequence[Contribution], learning_rate: float, statistics_share: float) -> None:
        """Apply one whole update (see `begin_update`)."""
        step_block = self.begin_update(contributions, learning_rate, statistics_share)
        for number in range(len(self.blocks)):
            step_block(number)

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Views of a vector (n,), one for each of `blocks`."""
        return vector.split_with_sizes(self._sizes)

    def predicted(self, look_ahead: float, out: Tensor) -> Tensor:
        """The parameters moved by `look_ahead` times the momentum vector: `out`, filled; the parameters if it is 0."""
        if not look_ahead:
            return self.parameters
        return torch.sub(self.parameters, self._state["momentum"], alpha=look_ahead, out=out)

    def predict_block(self, number: int, look_ahead: float, out: Tensor) -> None:
        """Fill `out` with one block of the predicted parameters."""
        block = self.blocks[number]
        if look_ahead:
            torch.sub(block.parameters, block.state["momentum"], alpha=look_ahead, out=out)
        else:
            out.copy_(block.parameters)

    def snapshot(self) -> SliceState:
        """A copy of parameters and statistics."""
        return SliceState(self.version, self.parameters.clone(), self.statistics.clone(), {})

    def state(self) -> SliceState:
        """A copy of everything."""
        optimizer = {name: vector.clone() for name, vector in self._state.items()}
        return self.snapshot()._replace(optimizer=optimizer)

    def state_sizes(self) -> dict[str, int]:
        """Elements of each vector of `state()`, by name."""
        return {name: len(vector) for name, vector in self._vectors().items()}

    def restore(self, state: SliceState) -> None:
        """Take over `state`, in place. Raises ValueError if it is of another model or optimizer."""
        own, other = self._vectors(), state.vectors()
        if {name: vector.shape for name, vector in own.items()} != {name: v.shape for name, v in other.items()}:
            sizes = ", ".join(f"{name} {len(vector)}" for name, vector in other.items())
            raise ValueError(f"the state is of another model or optimizer: it has {sizes}")
        for name, vector in own.items():
            vector.copy_(other[name])
        self.version = state.version

    def write_state(self, version: int, name: str, start: int, values: Tensor) -> None:
        """Overwrite part of one vector of the state, from element `start` on. Raises ValueError if it does not fit."""
        vector = self._vectors().get(name)
        if vector is None or start + len(values) > len(vector):
            raise ValueError(f"the state is of another model or optimizer: it has {name} {start + len(values)}")
        vector[start : start + len(values)] = values
        self.version = version

    def _vectors(self) -> dict[str, Tensor]:
        return {"parameters": self.parameters, "statistics": self.statistics, **self._state}


def _apply_gradient(
    config: OptimizerConfig,
    parameters: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    updates_before: int,
    rate: float,
    decay: float,
) -> None:
    """Move `parameters` and the optimizer's `state` (see OptimizerConfig.state_names) in place; all vectors are (n,).

    `updates_before`: updates that these vectors have seen; `decay`: weight decay of these parameters.
    """
    # torch.optim's classes call these functions in the end. The classes import torch's compiler, 75 MB and 1.5 s, and
    # take longer than the step itself of a small model.
    match config.kind:
        case "sgd":
            torch._fused_sgd_(
                [parameters],
                [gradient],
                [state["momentum"]] if config.momentum else [],
                lr=rate,
                weight_decay=decay,
                momentum=config.momentum,
                nesterov=config.nesterov,
                dampening=0.0,
                maximize=False,
                is_first_step=False,
            )
        case "rmsprop":  # torch has no fused RMSProp
            rmsprop(
                [parameters],
                [gradient],
                [state["squares"]],
                [],
                [state["momentum"]] if config.momentum else [],
                [torch.tensor(float(updates_before))],
                foreach=True,
                lr=rate,
                weight_decay=decay,
                momentum=config.momentum,
                alpha=config.smoothing,
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
                [torch.tensor(updates_before + 1.0)],
                lr=rate,
                weight_decay=decay,
                beta1=0.9,
                beta2=config.smoothing,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )

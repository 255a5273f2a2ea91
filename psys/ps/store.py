"""One slice of the flat parameter vector with its optimizer: gradients in, new versions out."""

from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.rmsprop import rmsprop

from psys.ps.compensation import NO_COMPENSATION, CompensationConfig
from psys.ps.optimizer import OptimizerConfig
from psys.ps.partition import CACHE_LINE, partition

_BLOCK = 1 << 16  # elements, about
_MEANS = ("gradient_squares", "momentum_squares")  # running means, see CompensationConfig.state_names
_GRADIENT_SMOOTHING, _MOMENTUM_SMOOTHING = 0.95, 0.999  # of the papers (see ParameterStore._compensate)


class SliceState(NamedTuple):
    """A copy of a slice at one version. `optimizer` is empty in a snapshot."""

    version: int
    parameters: Tensor  # (n,) float32
    statistics: Tensor  # (m,) float32
    optimizer: dict[str, Tensor]  # (n,) float32 each, see RunConfig.state_names

    def vectors(self) -> dict[str, Tensor]:
        """All vectors by name; `parameters` and `statistics` come first."""
        return {"parameters": self.parameters, "statistics": self.statistics, **self.optimizer}


def refitted(state: SliceState, names: Collection[str]) -> SliceState:
    """`state` with those of the running means of `names`, as another compensation needs others to go on.

    A mean of gradients that `state` lacks begins at zero, one of the momentum vector as the square of that vector.
    """
    vectors = {name: vector for name, vector in state.optimizer.items() if name in names or name not in _MEANS}
    if "gradient_squares" in names and "gradient_squares" not in vectors:
        vectors["gradient_squares"] = torch.zeros_like(state.parameters)
    if "momentum_squares" in names and "momentum_squares" not in vectors and "momentum" in vectors:
        vectors["momentum_squares"] = vectors["momentum"].square()
    return state._replace(optimizer=vectors)


class Contribution(NamedTuple):
    """What one pushed batch adds to an update."""

    gradient: Tensor  # (n,) of any float dtype, mean over the batch; the update may overwrite it
    statistics: Tensor  # (m,) float32, the worker's running statistics after the batch
    share: float  # of the update's samples; the shares of an update add up to 1
    damping: float = 1.0  # what the gradient is multiplied by besides
    worker: str = ""  # who computed it; it matters with a momentum vector for each worker
    read: Tensor | None = None  # (n,) of any float dtype, parameters of a late gradient to be compensated
    compensated: bool = False  # `read` and the means of squares have been seen to

    @property
    def weight(self) -> float:
        """What the gradient is multiplied by."""
        return self.share * self.damping


class Block(NamedTuple):
    """A stretch of the vectors that is stepped alike and fits a core's cache; views, made once."""

    parameters: Tensor  # (k,) float32
    state: dict[str, Tensor]  # (k,) float32 each, see RunConfig.state_names
    decay: float


class ParameterStore:
    """A slice of the flat parameter vector, the optimizer's vectors for it, and the number of updates applied.

    parameters: (n,) float32, of which the first `decayed` are subject to weight decay; statistics: (m,) float32.
    `highest_rate`: of the schedule; gap-aware compensation measures by it.

    With `momentum_per_worker` each worker between `add_worker` and `remove_worker` has a momentum vector of its own. A
    new one begins as the mean of the others; `momentum` in the state is this mean, or without workers the last vector.
    """

    def __init__(
        self,
        parameters: Tensor,
        decayed: int,
        statistics: Tensor,
        optimizer: OptimizerConfig,
        compensation: CompensationConfig = NO_COMPENSATION,
        highest_rate: float = 1.0,
    ) -> None:
        self.version = 0
        self.needs_reads = compensation.needs_reads
        self.parameters = parameters.detach().clone()
        self.statistics = statistics.detach().clone()
        self._optimizer, self._compensation, self._highest_rate = optimizer, compensation, highest_rate
        numel = len(parameters)
        names = (*optimizer.state_names(), *compensation.state_names())
        self._state = {name: torch.zeros(numel) for name in names}
        self._momenta: dict[str, Tensor] = {}  # by worker
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
        first, *others = contributions
        statistics = first.statistics * first.share if others else first.statistics
        for other in others:
            statistics.add_(other.statistics, alpha=other.share)
        self.statistics.lerp_(statistics, statistics_share)
        gradients, weight = self._gradients(first), first.weight
        summands = [(self._gradients(other), other.weight) for other in others]
        momentum = self.split(self._momenta[first.worker]) if self._optimizer.momentum_per_worker else None
        updates_before = self.version

        def step_block(number: int) -> None:
            mean, block = gradients(number), self.blocks[number]
            if weight != 1:
                mean.mul_(weight)
            for others_gradients, others_weight in summands:
                mean.add_(others_gradients(number), alpha=others_weight)
            state = {**block.state, "momentum": momentum[number]} if momentum else block.state
            _apply_gradient(self._optimizer, block.parameters, mean, state, updates_before, learning_rate, block.decay)
            if self._compensation.gap_aware:
                _move_mean_square(state["momentum_squares"], state.get("momentum", mean), _MOMENTUM_SMOOTHING)

        self.version += 1
        return step_block

    def update(self, contributions: Sequence[Contribution], learning_rate: float, statistics_share: float) -> None:
        """Apply one whole update (see `begin_update`)."""
        step_block = self.begin_update(contributions, learning_rate, statistics_share)
        for number in range(len(self.blocks)):
            step_block(number)

    def compensated(self, contribution: Contribution) -> Contribution:
        """The contribution with its gradient, which is float32, compensated in place: the next update has it."""
        gradients = self._gradients(contribution)
        for number in range(len(self.blocks)):
            gradients(number)
        return contribution._replace(compensated=True)

    def lacks(self, worker: str) -> bool:
        """Whether the worker is to be added before it reads."""
        return bool(self._optimizer.momentum_per_worker) and worker not in self._momenta

    def add_worker(self, worker: str) -> None:
        """The worker's momentum vector begins. All updates that have begun must be complete."""
        self._momenta[worker] = self._mean_momentum()

    def remove_worker(self, worker: str) -> None:
        """The worker's momentum vector, if it has one, ends. All updates that have begun must be complete."""
        momentum = self._momenta.pop(worker, None)
        if momentum is not None and not self._momenta:
            self._state["momentum"].copy_(momentum)

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
        if self._momenta:
            optimizer["momentum"] = self._mean_momentum()
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
        self._momenta.clear()
        self.version = state.version

    def write_state(self, version: int, name: str, start: int, values: Tensor) -> None:
        """Overwrite part of one vector of the state, from element `start` on. Raises ValueError if it does not fit."""
        vector = self._vectors().get(name)
        if vector is None or start + len(values) > len(vector):
            raise ValueError(f"the state is of another model or optimizer: it has {name} {start + len(values)}")
        vector[start : start + len(values)] = values
        self._momenta.clear()
        self.version = version

    def _vectors(self) -> dict[str, Tensor]:
        return {"parameters": self.parameters, "statistics": self.statistics, **self._state}

    def _mean_momentum(self) -> Tensor:
        """The mean of the workers' momentum vectors, or without any what a new one begins as; a new vector."""
        first, *others = self._momenta.values() or [self._state["momentum"]]
        mean = first.clone()
        for other in others:
            mean.add_(other)
        return mean.div_(1 + len(others))

    def _gradients(self, contribution: Contribution) -> Callable[[int], Tensor]:
        """Gives the gradient of one block (k,) float32, compensated, in the contribution's memory if that is float32.

        Each block is to be asked for once, in the order of updates, as a running mean may follow the gradients.
        """
        gradients, updates_before = self.split(contribution.gradient), self.version
        if contribution.compensated or not (self.needs_reads or self._compensation.state_names()):
            return lambda number: gradients[number].float()
        reads = None if contribution.read is None else self.split(contribution.read)

        def compensated(number: int) -> Tensor:
            gradient = gradients[number].float()
            self._compensate(self.blocks[number], gradient, reads[number] if reads else None, updates_before)
            return gradient

        return compensated

    def _compensate(self, block: Block, gradient: Tensor, read: Tensor | None, updates_before: int) -> None:
        """Compensate one block's gradient (k,) for the parameters' move since `read`, in place; None: it is not late.

        Delay: g + lambda * g * g * move; lambda is the strength, or strength / sqrt(mean of g^2 + 1e-7), adaptive
        (Zheng et al. 2017, "Asynchronous Stochastic Gradient Descent with Delay Compensation"). Gap-aware, after it:
        g / (1 + |move| / typical), where typical is the highest rate * (sqrt(mean of v^2) + 1e-8) and v the momentum
        vector, or without momentum the gradient (Barkai, Hakimi, Schuster 2020, "Gap-Aware Mitigation of Gradient
        Staleness"). The mean of g^2 has this gradient and begins at 0 as in the paper. The mean of v^2 has the updates
        before this one, and its beginning at 0 is divided out as Adam's.
        """
        config = self._compensation
        if config.delay == "adaptive":
            _move_mean_square(block.state["gradient_squares"], gradient, _GRADIENT_SMOOTHING)
        if read is None:
            return
        move = block.parameters - read
        if config.strength:
            correction = gradient.square().mul_(config.strength).mul_(move)
            if config.delay == "adaptive":
                correction.div_((block.state["gradient_squares"] + 1e-7).sqrt_())
            gradient.add_(correction)
        if config.gap_aware:
            seen = 1 - _MOMENTUM_SMOOTHING**updates_before
            typical = (block.state["momentum_squares"] / seen).sqrt_().add_(1e-8).mul_(self._highest_rate)
            gradient.div_(move.abs_().div_(typical).add_(1))


def _move_mean_square(mean: Tensor, vector: Tensor, smoothing: float) -> None:
    """Move a running mean of squares, in place. Both are (k,).

    Only sums and products that every instruction rounds alike: the bits do not depend on where a block begins.
    """
    mean.mul_(smoothing).add_(vector.square().mul_(1 - smoothing))


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

"""Reductions over axes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from psys.onnx.operators.table import Numbers, enter, ints, number, operator

_Reduction = Callable[[Tensor, list[int], bool], Tensor]
_REDUCTIONS: dict[str, _Reduction] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(dim=axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(dim=axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, dim=axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(dim=axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(dim=axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(dim=axes, keepdim=keep),
    "ReduceSum": lambda x, axes, keep: x.sum(dim=axes, keepdim=keep, dtype=x.dtype),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(dim=axes, keepdim=keep),
}


def _reduction(reduce: _Reduction) -> Callable[..., Tensor]:
    def function(x: Tensor, axes: Numbers | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        chosen = _axes(x, axes, noop_with_empty_axes)
        return reduce(x, chosen, bool(keepdims)) if chosen else x

    return function


for _name, _reduce in _REDUCTIONS.items():
    enter(_name, _reduction(_reduce), host=(1,))


@operator("ReduceProd", host=(1,))
def reduce_prod(x: Tensor, axes: Numbers | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """The product over axes, one after the other."""
    chosen = _axes(x, axes, noop_with_empty_axes)
    for axis in chosen:
        x = x.prod(dim=axis, keepdim=True)
    return x if keepdims else x.squeeze(chosen)


@operator("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where the largest element along an axis is: no gradient passes."""
    return x.argmax(dim=axis, keepdim=bool(keepdims))


@operator("ArgMin")
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where the smallest element along an axis is: no gradient passes."""
    return x.argmin(dim=axis, keepdim=bool(keepdims))


@operator("CumSum", host=(1,))
def cumulative_sum(x: Tensor, axis: Numbers, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Sums of all elements up to each one."""
    along = int(number(axis))
    x = x.flip(along) if reverse else x
    out = x.cumsum(dim=along)
    out = out - x if exclusive else out
    return out.flip(along) if reverse else out


@operator("TopK", host=(1,))
def top_k(x: Tensor, k: Numbers, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """The largest elements along an axis, and where they are."""
    found: Any = torch.topk(x, int(number(k)), dim=axis, largest=bool(largest), sorted=bool(sorted))
    return found.values, found.indices


def _axes(x: Tensor, axes: Numbers | None, noop_with_empty_axes: int) -> list[int]:
    chosen: Sequence[int] = ints(axes)
    if not chosen:
        return [] if noop_with_empty_axes else list(range(x.dim()))
    return [axis % x.dim() for axis in chosen]

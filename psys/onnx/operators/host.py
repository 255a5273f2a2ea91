"""Operators on numbers of the host: the arithmetic of shapes, computed once a forward and never traced.

An array of dtype object holds symbolic sizes, of a batch in an export; Python's operators work on them as on ints.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from psys.onnx.operators.table import Numbers, ints, number, torch_dtype

_LARGE = 4096  # elements; larger arrays are no shapes, and tensors are faster


def _divide(a: Numbers, b: Numbers) -> Numbers:
    """Shapes are not negative: towards zero is down."""
    floats = "f" in (a.dtype.kind, b.dtype.kind)
    return np.asarray(a / b if floats else a // b)


def _cast(x: Numbers, *, to: int, saturate: int = 1, round_mode: str = "up") -> Numbers:
    dtype = torch_dtype(to)
    if x.dtype == object:
        return np.array([torch.sym_float(v) if dtype.is_floating_point else v for v in x.ravel()], object).reshape(
            x.shape
        )
    return x.astype(str(dtype).removeprefix("torch."))


def _gather(x: Numbers, indices: Numbers, *, axis: int = 0) -> Numbers:
    return np.asarray(np.take(x, indices.astype(np.int64), axis=axis))


def _reshape(x: Numbers, shape: Numbers, *, allowzero: int = 0) -> Numbers:
    sizes = ints(shape)
    return x.reshape([x.shape[axis] if size == 0 and not allowzero else size for axis, size in enumerate(sizes)])


def _squeeze(x: Numbers, axes: Numbers | None = None) -> Numbers:
    return np.squeeze(x, None if axes is None else tuple(ints(axes)))


def _unsqueeze(x: Numbers, axes: Numbers) -> Numbers:
    return np.expand_dims(x, tuple(ints(axes)))


def _slice(
    x: Numbers, starts: Numbers, ends: Numbers, axes: Numbers | None = None, steps: Numbers | None = None
) -> Numbers:
    first, last = ints(starts), ints(ends)
    where = ints(axes) if axes is not None else list(range(len(first)))
    strides = ints(steps) if steps is not None else [1] * len(first)
    for axis, start, end, step in zip(where, first, last, strides, strict=True):
        stop = None if step < 0 and end < -x.shape[axis] else end
        x = x[(*[slice(None)] * (axis % x.ndim), slice(start, stop, step))]
    return x


def _split(
    x: Numbers, sizes: Numbers | None = None, *, axis: int = 0, num_outputs: int = 0, outputs: int
) -> Sequence[Numbers]:
    parts = np.cumsum(ints(sizes))[:-1] if sizes is not None else outputs
    return np.split(x, parts, axis)


def _constant_of_shape(shape: Numbers, *, value: Numbers | None = None) -> Any:
    fill = np.zeros(1, np.float32) if value is None else value
    if shape.dtype == object or np.prod(shape) > _LARGE:
        return NotImplemented
    return np.full(ints(shape), number(fill), fill.dtype)


def _expand(x: Numbers, shape: Numbers) -> Any:
    if shape.dtype == object or np.prod(shape) > _LARGE:
        return NotImplemented
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(ints(shape))))


def _range(start: Numbers, limit: Numbers, delta: Numbers) -> Any:
    if object in (start.dtype, limit.dtype, delta.dtype):
        return NotImplemented
    return np.arange(number(start), number(limit), number(delta), dtype=start.dtype)


def _reduce(function: Callable[..., Any]) -> Callable[..., Numbers]:
    def reduce(x: Numbers, axes: Numbers | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Numbers:
        if noop_with_empty_axes and not ints(axes):
            return x
        return np.asarray(function(x, axis=tuple(ints(axes)) or None, keepdims=bool(keepdims)))

    return reduce


def _transpose(x: Numbers, *, perm: Sequence[int] = ()) -> Numbers:
    return np.transpose(x, list(perm) or None)


def _where(condition: Numbers, a: Numbers, b: Numbers) -> Numbers:
    return np.where(condition.astype(bool), a, b)


HOST_OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Add": lambda a, b: np.asarray(a + b),
    "And": np.logical_and,
    "Cast": _cast,
    "Ceil": np.ceil,
    "Concat": lambda *values, axis: np.concatenate(values, axis),
    "ConstantOfShape": _constant_of_shape,
    "Div": _divide,
    "Equal": lambda a, b: np.asarray(a == b),
    "Expand": _expand,
    "Floor": np.floor,
    "Gather": _gather,
    "Greater": lambda a, b: np.asarray(a > b),
    "GreaterOrEqual": lambda a, b: np.asarray(a >= b),
    "Identity": lambda x: x,
    "Less": lambda a, b: np.asarray(a < b),
    "LessOrEqual": lambda a, b: np.asarray(a <= b),
    "Max": lambda *values: np.max(np.broadcast_arrays(*values), axis=0),
    "Min": lambda *values: np.min(np.broadcast_arrays(*values), axis=0),
    "Mod": lambda a, b, fmod=0: np.asarray(a % b),
    "Mul": lambda a, b: np.asarray(a * b),
    "Neg": lambda x: np.asarray(-x),
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Pow": lambda a, b: np.asarray(a**b),
    "Range": _range,
    "Reciprocal": lambda x: np.asarray(1 / x, x.dtype),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Sqrt": np.sqrt,
    "Squeeze": _squeeze,
    "Sub": lambda a, b: np.asarray(a - b),
    "Tile": lambda x, repeats: np.tile(x, ints(repeats)),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
"""Operators for inputs that are all numbers of the host; NotImplemented: it is to be a tensor"""

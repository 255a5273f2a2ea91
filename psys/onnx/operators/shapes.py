"""Operators that arrange elements anew."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from psys.onnx.operators.table import Numbers, Unsupported, ints, number, operator, torch_dtype


@operator("Reshape", host=(1,))
def reshape(x: Tensor, shape: Numbers, *, allowzero: int = 0) -> Tensor:
    """0 takes the input's own axis, -1 what is left."""
    sizes = ints(shape)
    if not allowzero:
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Two axes: those before `axis`, and the others."""
    axis = axis % x.dim() if axis < 0 else axis
    if axis == 1:
        return x.flatten(1) if x.dim() > 1 else x.reshape(-1, 1)
    if axis == 0:
        return x.reshape(1, -1)
    return x.reshape(torch.Size(x.shape[:axis]).numel(), -1)


@operator("Transpose")
def transpose(x: Tensor, *, perm: Sequence[int] = ()) -> Tensor:
    """Axes in another order, by default the reverse one."""
    return x.permute(list(perm) or list(reversed(range(x.dim()))))


@operator("Squeeze", host=(1,))
def squeeze(x: Tensor, axes: Numbers | None = None) -> Tensor:
    """Without axes of size 1: those named, or all but the batch."""
    chosen = ints(axes) if axes is not None else [axis for axis in range(1, x.dim()) if x.shape[axis] == 1]
    return x.squeeze(chosen) if chosen else x


@operator("Unsqueeze", host=(1,))
def unsqueeze(x: Tensor, axes: Numbers) -> Tensor:
    """With new axes of size 1."""
    chosen = ints(axes)
    rank = x.dim() + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(*values: Tensor, axis: int) -> Tensor:
    """Along an axis. A part for one image, as a class token, is repeated for the images of a batch."""
    axis = axis % values[0].dim()
    if axis:
        sizes = [value.shape[0] for value in values]
        # A comparison of a symbolic size with 1 fixes it in an export, so only tensors without a batch are asked.
        fixed = [isinstance(size, int) and size == 1 for size in sizes]
        if any(fixed) and not all(fixed):
            batch = sizes[fixed.index(False)]
            values = tuple(
                value.expand(batch, *value.shape[1:]) if one else value
                for value, one in zip(values, fixed, strict=True)
            )
    kinds = {value.dtype for value in values}
    if len(kinds) > 1:
        dtype = next((kind for kind in kinds if kind.is_floating_point), torch.int64)
        values = tuple(value.to(dtype) for value in values)
    return torch.cat(values, dim=axis)


@operator("Split", host=(1,))
def split(
    x: Tensor, sizes: Numbers | None = None, *, axis: int = 0, num_outputs: int = 0, outputs: int
) -> Sequence[Tensor]:
    """Parts along an axis, of given sizes or alike."""
    if sizes is not None:
        return torch.split(x, ints(sizes), dim=axis)
    return torch.split(x, -(-x.shape[axis] // (num_outputs or outputs)), dim=axis)


@operator("Slice", host=(1, 2, 3, 4))
def slice_(
    x: Tensor, starts: Numbers, ends: Numbers, axes: Numbers | None = None, steps: Numbers | None = None
) -> Tensor:
    """A part of some axes; a negative step goes backwards."""
    first, last = ints(starts), ints(ends)
    where = ints(axes) if axes is not None else list(range(len(first)))
    strides = ints(steps) if steps is not None else [1] * len(first)
    for axis, start, end, step in zip(where, first, last, strides, strict=True):
        axis %= x.dim()
        if step > 0:
            x = x[(*[slice(None)] * axis, slice(start, end, step))]
        else:
            chosen = list(range(x.shape[axis]))[slice(start, None if end < -x.shape[axis] else end, step)]
            x = x.index_select(axis, torch.tensor(chosen, dtype=torch.int64, device=x.device))
    return x


@operator("Expand", host=(1,))
def expand(x: Tensor, shape: Numbers) -> Tensor:
    """Broadcast with a shape, in both directions."""
    sizes = ints(shape)
    sizes = [1] * (x.dim() - len(sizes)) + sizes
    own = [1] * (len(sizes) - x.dim()) + list(x.shape)
    return x.expand(
        [mine if isinstance(size, int) and size == 1 else size for size, mine in zip(sizes, own, strict=True)]
    )


@operator("Tile", host=(1,))
def tile(x: Tensor, repeats: Numbers) -> Tensor:
    """Repeated along each axis."""
    return x.repeat(ints(repeats))


@operator("Trilu", host=(1,))
def trilu(x: Tensor, k: Numbers | None = None, *, upper: int = 1) -> Tensor:
    """The upper or lower triangle, 0 elsewhere."""
    diagonal = 0 if k is None else int(number(k))
    return x.triu(diagonal) if upper else x.tril(diagonal)


@operator("EyeLike")
def eye_like(x: Tensor, *, dtype: int = 1, k: int = 0) -> Tensor:
    """Ones on a diagonal of a matrix of x's shape."""
    ones = torch.ones(x.shape[0], x.shape[1], device=x.device, dtype=torch_dtype(dtype))
    return ones.triu(k) - ones.triu(k + 1)


@operator("OneHot", host=(1, 2))
def one_hot(indices: Tensor, depth: Numbers, values: Numbers, *, axis: int = -1) -> Tensor:
    """Numbers of classes as rows with one other element."""
    if axis not in (-1, indices.dim()):
        raise Unsupported("OneHot along another axis than the last one is not supported")
    off, on = values.tolist()
    classes = torch.arange(int(number(depth)), device=indices.device)
    return torch.where(indices[..., None].long() == classes, float(on), float(off))


@operator("ConstantOfShape", host=(0,))
def constant_of_shape(shape: Numbers, *, value: Numbers | None = None, device: torch.device) -> Tensor:
    """A tensor of one repeated element; a small one of known shape is made on the host."""
    fill = np.zeros(1, np.float32) if value is None else value
    return torch.full(ints(shape), number(fill), device=device)


@operator("Range", host=(0, 1, 2))
def range_(start: Numbers, limit: Numbers, delta: Numbers, *, device: torch.device) -> Tensor:
    """Numbers at equal distances; known ones are made on the host."""
    return torch.arange(number(start), number(limit), number(delta), device=device)

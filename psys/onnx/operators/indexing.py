"""Operators that choose elements by their indices."""

import torch
from torch import Tensor

from psys.onnx.operators.table import Unsupported, operator


@operator("Gather", scalars=True)
def gather(x: Tensor, indices: Tensor | int, *, axis: int = 0) -> Tensor:
    """Elements along an axis; an index without axes removes the axis."""
    axis %= x.dim()
    if not isinstance(indices, Tensor):
        return x.select(axis, int(indices))
    indices = indices.long()
    size = x.shape[axis]
    chosen = x.index_select(axis, torch.where(indices < 0, indices + size, indices).flatten())
    return chosen.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@operator("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """For each element of `indices` the one of x with that index along the axis."""
    size = x.shape[axis]
    return torch.gather(x, axis, torch.where(indices < 0, indices + size, indices).long())


@operator("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Parts of x whose leading indices are the rows of `indices`."""
    if batch_dims:
        raise Unsupported("GatherND with batch_dims is not supported")
    return x[tuple(indices.long().unbind(-1))]


@operator("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """A copy of x with other parts at the rows of `indices`."""
    if reduction != "none":
        raise Unsupported(f"ScatterND with reduction '{reduction}' is not supported")
    return torch.index_put(x, tuple(indices.long().unbind(-1)), updates.to(x.dtype))


@operator("ScatterElements")
def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    """A copy of x with other elements along an axis."""
    if reduction != "none":
        raise Unsupported(f"ScatterElements with reduction '{reduction}' is not supported")
    return torch.scatter(x, axis, indices.long(), updates)

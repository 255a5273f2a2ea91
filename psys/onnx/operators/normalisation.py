"""Normalisation over batches, layers, groups and channels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from psys.onnx.operators.table import operator


@operator("BatchNormalization", weights=(1, 2, 3, 4))
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    training: bool,
) -> Tensor:
    """Batch norm that trains and evaluates as torch's does, whatever mode the file was exported in.

    ONNX's momentum is the share of the old statistics, torch's that of the new ones.
    """
    return F.batch_norm(x, mean, variance, scale, bias, training, 1 - momentum, epsilon)


@operator("WeightStandardization", weights=(1, 2))
def weight_standardization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 1,
) -> Tensor:
    """A BatchNormalization of weights by their own statistics, as NFNets have; psys gives such nodes this name."""
    return F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)


@operator("InstanceNormalization", weights=(1, 2))
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Each channel of each image to zero mean and unit variance."""
    return F.instance_norm(x, None, None, scale, bias, True, 0.0, epsilon)


@operator("LayerNormalization", weights=(1, 2))
def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """All axes from `axis` on to zero mean and unit variance."""
    shape = x.shape[axis % x.dim() :]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return F.layer_norm(x, shape, scale, bias, epsilon)
    out = F.layer_norm(x, shape, eps=epsilon) * scale
    return out if bias is None else out + bias


@operator("RMSNormalization", weights=(1,))
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """All axes from `axis` on divided by the root of their mean square."""
    axes = list(range(axis % x.dim(), x.dim()))
    return x * torch.rsqrt(x.square().mean(dim=axes, keepdim=True) + epsilon) * scale


@operator("GroupNormalization", weights=(1, 2))
def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Groups of channels to zero mean and unit variance; up to opset 20 scale and bias are those of groups."""
    if scale.shape[0] != x.shape[1]:
        repeats = x.shape[1] // scale.shape[0]
        scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Divided by the p-norm along an axis."""
    norm: Tensor = torch.linalg.vector_norm(x, ord=p, dim=axis, keepdim=True)
    return x / norm


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """Zero mean and unit variance over some axes."""
    centred = x - x.mean(dim=list(axes), keepdim=True)
    return centred / (centred.square().mean(dim=list(axes), keepdim=True).sqrt() + 1e-9)


@operator("LRN")
def local_response_normalization(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """Divided by a power of the squares in neighbouring channels."""
    below = (size - 1) // 2
    squares = F.pad(x.square(), [0, 0] * (x.dim() - 2) + [below, size - 1 - below])
    total = squares.unfold(1, size, 1).sum(dim=-1)
    return x / (bias + alpha / size * total).pow(beta)

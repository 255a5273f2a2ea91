"""Pooling over windows and over whole images."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from psys.onnx.operators.convolution import padding, torch_pads
from psys.onnx.operators.table import Unsupported, operator

_MAXIMA: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEANS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@operator("MaxPool")
def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] = (),
    pads: Sequence[int] = (),
    storage_order: int = 0,
    strides: Sequence[int] = (),
) -> Tensor:
    """The largest element of each window."""
    rank = len(kernel_shape)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    before, after = padding(x.shape[2:], kernel_shape, strides, dilations, auto_pad, pads)
    if ceil_mode:
        after = _up_to_the_last_window(x.shape[2:], kernel_shape, strides, dilations, before, after)
    if before == after and all(2 * b <= k for b, k in zip(before, kernel_shape, strict=True)):
        return _MAXIMA[rank](x, kernel_shape, strides, before, dilations)
    x = F.pad(x, torch_pads(before, after), value=-torch.inf)
    return _MAXIMA[rank](x, kernel_shape, strides, 0, dilations)


@operator("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """The mean of each window; padding counts as zeros with `count_include_pad`, and not at all without."""
    rank = len(kernel_shape)
    strides = strides or [1] * rank
    if any(d != 1 for d in dilations):
        raise Unsupported("a dilated AveragePool is not supported")
    before, after = padding(x.shape[2:], kernel_shape, strides, [1] * rank, auto_pad, pads)
    padded = before != [0] * rank or after != [0] * rank
    beyond = _up_to_the_last_window(x.shape[2:], kernel_shape, strides, [1] * rank, before, after)
    if not ceil_mode or beyond == after:
        if not padded or (count_include_pad and before != after):
            return _MEANS[rank](F.pad(x, torch_pads(before, after)), kernel_shape, strides)
        if before == after and all(2 * b <= k for b, k in zip(before, kernel_shape, strict=True)):
            return _MEANS[rank](x, kernel_shape, strides, before, False, bool(count_include_pad))
    else:
        padded = True
    # The mean of each window with zeros, divided by the share of the window that counts.
    rest = [b - a for b, a in zip(beyond, after, strict=True)] if ceil_mode else [0] * rank
    counted = torch.ones_like(x[:1, :1])
    counted = F.pad(counted, torch_pads(before, after), value=float(count_include_pad))
    counted = F.pad(counted, torch_pads([0] * rank, rest))
    x = F.pad(x, torch_pads(before, [a + r for a, r in zip(after, rest, strict=True)]))
    return _MEANS[rank](x, kernel_shape, strides) / _MEANS[rank](counted, kernel_shape, strides)


@operator("LpPool")
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] = (),
    p: int = 2,
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """The p-norm of each window."""
    if ceil_mode or any(d != 1 for d in dilations):
        raise Unsupported("LpPool with dilations or ceil_mode is not supported")
    strides = strides or [1] * len(kernel_shape)
    before, after = padding(x.shape[2:], kernel_shape, strides, [1] * len(kernel_shape), auto_pad, pads)
    powers = F.pad(x.abs().pow(p), torch_pads(before, after))
    elements = torch.Size(kernel_shape).numel()
    return (_MEANS[len(kernel_shape)](powers, kernel_shape, strides) * elements).pow(1 / p)


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """The mean of each channel."""
    return x.mean(dim=_spatial(x), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """The largest element of each channel."""
    return x.amax(dim=_spatial(x), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    """The p-norm of each channel."""
    return x.abs().pow(p).sum(dim=_spatial(x), keepdim=True).pow(1 / p)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def _up_to_the_last_window(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
) -> list[int]:
    """Padding after each axis with which the windows of `ceil_mode` fit; a window in the padding alone is none."""
    widths = []
    for n, k, s, d, b, a in zip(size, kernel, strides, dilations, before, after, strict=True):
        reach = d * (k - 1) + 1
        windows = -(-(n + b + a - reach) // s) + 1
        if (windows - 1) * s >= n + b:
            windows -= 1
        widths.append(max(a, (windows - 1) * s + reach - n - b))
    return widths

"""Convolutions, their padding, and resampling of images."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from psys.onnx.operators.table import Numbers, Unsupported, ints, number, operator

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


@operator("Conv", weights=(1, 2))
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Convolution over one to three dimensions, grouped or not."""
    kernel, rank = weight.shape[2:], weight.dim() - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    before, after = padding(x.shape[2:], kernel, strides, dilations, auto_pad, pads)
    if before != after:
        x, before = F.pad(x, torch_pads(before, after)), [0] * rank
    function = _of_rank(_CONVOLUTIONS, weight)
    return function(x, weight, bias, strides, before, dilations, group)


@operator("ConvTranspose", weights=(1, 2))
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    output_padding: Sequence[int] = (),
    output_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Transposed convolution: the whole output is computed, and cropped by the pads."""
    rank = weight.dim() - 2
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    extra = list(output_padding or [0] * rank)
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, weight.shape[2:], strict=True)]
    whole = [s * (n - 1) + e + r for s, n, e, r in zip(strides, x.shape[2:], extra, reach, strict=True)]
    if output_shape or auto_pad.startswith("SAME"):
        wanted = list(output_shape[-rank:]) or [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        total = [max(0, w - o) for w, o in zip(whole, wanted, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        before, after = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    else:
        before, after = list(pads[:rank]) or [0] * rank, list(pads[rank:]) or [0] * rank
    function = _of_rank(_TRANSPOSED, weight)
    # torch wants output_padding below the stride, and crops both sides alike: zeros and crops are made here.
    out = function(x, weight, None, strides, 0, 0, group, dilations)
    out = F.pad(out, torch_pads([-b for b in before], [e - a for e, a in zip(extra, after, strict=True)]))
    return out if bias is None else out + bias.view(-1, *[1] * rank)


@operator("Pad", host=(1, 2, 3))
def pad(
    x: Tensor,
    pads: Numbers,
    value: Numbers | None = None,
    axes: Numbers | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """Rows and columns added, or with negative pads removed, on both sides of some axes."""
    where = [axis % x.dim() for axis in ints(axes)] or list(range(x.dim()))
    widths = ints(pads)
    before, after = [0] * x.dim(), [0] * x.dim()
    for axis, b, a in zip(where, widths[: len(where)], widths[len(where) :], strict=True):
        before[axis], after[axis] = b, a
    if mode == "constant":
        return F.pad(x, torch_pads(before, after), value=0.0 if value is None else number(value))
    # torch reflects at most the last three axes, and wants two axes before them.
    first = next((axis for axis in range(x.dim()) if before[axis] or after[axis]), x.dim())
    if first == x.dim():
        return x
    inner = x.dim() - first
    if inner > 3:
        raise Unsupported(f"mode '{mode}' for the first of four axes is not supported")
    shape = x.shape
    flat = x.reshape(1, -1, *shape[first:])
    kinds = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    out = F.pad(flat, torch_pads(before[first:], after[first:]), mode=kinds[mode])
    return out.reshape(*shape[:first], *out.shape[2:])


@operator("Resize", host=(1, 2, 3))
def resize(
    x: Tensor,
    roi: Numbers | None = None,
    scales: Numbers | None = None,
    sizes: Numbers | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] = (),
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Images of another size, axis by axis, as a product with a matrix of weights or a choice of rows."""
    if antialias or mode == "cubic" or keep_aspect_ratio_policy != "stretch":
        raise Unsupported(
            "antialiased, cubic and aspect-keeping resizing are not supported; use mode linear or nearest"
        )
    if coordinate_transformation_mode == "tf_crop_and_resize":
        raise Unsupported("tf_crop_and_resize is not supported; crop with Slice before")
    where = [axis % x.dim() for axis in axes] or list(range(x.dim()))
    given = ints(sizes)
    factors = [1.0] * x.dim() if scales is None or not scales.size else [float(f) for f in scales.tolist()]
    for place, axis in enumerate(where):
        if axis == 0:
            continue  # the batch
        before = int(x.shape[axis])
        size = int(given[place]) if given else int(before * factors[place])
        factor = size / before if given else factors[place]
        if size != before or factor != 1:
            x = _resize_axis(x, axis, size, factor, mode, coordinate_transformation_mode, nearest_mode)
    return x


def _resize_axis(x: Tensor, axis: int, size: int, factor: float, mode: str, coordinates: str, nearest: str) -> Tensor:
    before = int(x.shape[axis])
    out = np.arange(size, dtype=np.float64)
    places = {
        "asymmetric": lambda: out / factor,
        "half_pixel": lambda: (out + 0.5) / factor - 0.5,
        "pytorch_half_pixel": lambda: (out + 0.5) / factor - 0.5 if size > 1 else out * 0,
        "align_corners": lambda: out * (before - 1) / max(size - 1, 1),
        "half_pixel_symmetric": lambda: before / 2 * (1 - size / (factor * before)) + (out + 0.5) / factor - 0.5,
    }[coordinates]()
    if mode == "nearest":
        chosen = {
            "floor": np.floor(places),
            "ceil": np.ceil(places),
            "round_prefer_floor": np.ceil(places - 0.5),
            "round_prefer_ceil": np.floor(places + 0.5),
        }[nearest]
        rows = torch.tensor(np.clip(chosen, 0, before - 1).astype(np.int64), device=x.device)
        return x.index_select(axis, rows)
    places = np.clip(places, 0, before - 1)
    low = np.floor(places).astype(np.int64)
    high = np.minimum(low + 1, before - 1)
    weights = np.zeros((size, before), np.float32)
    np.add.at(weights, (np.arange(size), low), 1 - (places - low))
    np.add.at(weights, (np.arange(size), high), places - low)
    matrix = torch.tensor(weights, device=x.device)
    return (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)


@operator("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels become blocks of pixels."""
    _, channels, height, width = x.shape
    inner = channels // blocksize**2
    if mode == "CRD":
        parts = x.reshape(-1, inner, blocksize, blocksize, height, width).permute(0, 1, 4, 2, 5, 3)
    else:
        parts = x.reshape(-1, blocksize, blocksize, inner, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(-1, inner, height * blocksize, width * blocksize)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    """Blocks of pixels become channels."""
    _, channels, height, width = x.shape
    rows, columns = height // blocksize, width // blocksize
    parts = x.reshape(-1, channels, rows, blocksize, columns, blocksize).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(-1, channels * blocksize**2, rows, columns)


def padding(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    auto_pad: str,
    pads: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Rows to add before and after each spatial axis, for a window moved over images of that size."""
    rank = len(kernel)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        total = [max(0, (-(-n // s) - 1) * s + r - n) for n, s, r in zip(size, strides, reach, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        return (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    if auto_pad == "VALID" or not pads:
        return [0] * rank, [0] * rank
    return list(pads[:rank]), list(pads[rank:])


def torch_pads(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Pads in torch's order: the last axis first, both sides together; leading axes without pads are left out."""
    pairs = list(zip(before, after, strict=True))
    while len(pairs) > 1 and pairs[0] == (0, 0):
        pairs.pop(0)
    return [width for pair in reversed(pairs) for width in pair]


def _of_rank(functions: dict[int, Callable[..., Tensor]], weight: Tensor) -> Callable[..., Tensor]:
    if weight.dim() not in functions:
        raise Unsupported(f"a convolution over {weight.dim() - 2} dimensions is not supported")
    return functions[weight.dim()]

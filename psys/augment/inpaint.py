"""Inpaint foregrounds: hidden pixels are filled smoothly from the background around them."""

import torch
from torch import Tensor

from psys.augment.pixels import from_planes, masks_of, to_planes

_REACH = 1 / 16
"""Distance over which a known pixel's weight falls to 1/e, as a share of the image's side."""
_STRIDE = 2
"""A filled colour is computed for every _STRIDE-th row and column."""
_RIM = 1e-3
"""Weight of a background pixel next to the foreground: a mask may be off by one pixel and show the object's edge."""


def backgrounds(words: Tensor) -> Tensor:
    """Fill every pixel in or next to the mask: words (B, H, W) int32 -> words without a mask.

    A filled pixel is the mean of all known pixels, weighted by exp(-distance / reach). The distance is the sum of those
    along rows and along columns, so the mean takes two matrix products. It is computed from and for every `_STRIDE`-th
    row and column. An image without known pixels is filled with black.
    """
    masks = masks_of(words)
    beside = _dilated(masks)
    few, hidden, unsure = (each[:, ::_STRIDE, ::_STRIDE].contiguous() for each in (words, masks, beside))
    weights = torch.where(unsure, _RIM, 1.0).masked_fill(hidden, 0)
    red, green, blue, _ = to_planes(few).unbind(1)
    known = torch.stack([red * weights, green * weights, blue * weights, weights], dim=2)  # (B, rows, 4, columns)
    rows, _, columns = known.shape[1:]
    spread = _falloff(rows, known.device) @ known.flatten(2)
    sums = (spread.view(known.shape) @ _falloff(columns, known.device)).transpose(1, 2)
    filled = from_planes(sums[:, :3] / sums[:, 3:].clamp_min(torch.finfo(sums.dtype).tiny))
    filled = filled.repeat_interleave(_STRIDE, dim=2).repeat_interleave(_STRIDE, dim=1)
    height, width = masks.shape[1:]
    return torch.where(beside, filled[:, :height, :width], words)


def _falloff(count: int, device: torch.device) -> Tensor:
    """Weights of `count` positions along a side for each other: (count, count) float32."""
    positions = torch.arange(count, device=device)
    return torch.exp(-(positions[:, None] - positions).abs() / (_REACH * count))


def _dilated(masks: Tensor) -> Tensor:
    wider = masks.clone()
    wider[:, 1:] |= masks[:, :-1]
    wider[:, :-1] |= masks[:, 1:]
    wider[:, :, 1:] |= masks[:, :, :-1]
    wider[:, :, :-1] |= masks[:, :, 1:]
    return wider

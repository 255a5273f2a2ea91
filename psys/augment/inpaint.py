"""Backgrounds without their foregrounds: what is hidden is filled smoothly from what surrounds it."""

import torch
from torch import Tensor

from psys.augment.pixels import from_planes, masks_of, to_planes

_REACH = 1 / 16
"""Of the side: over this distance the weight of a known pixel falls to 1/e."""
_STRIDE = 2
"""A filled colour stands for so many rows and columns of pixels."""
_RIM = 1e-3
"""Weight of a background pixel beside the foreground: masks are a pixel off, and the object's edge must not leak."""


def backgrounds(words: Tensor) -> Tensor:
    """Words (B, H, W) int32 with every pixel in or beside the mask filled, and no mask; black where nothing is known.

    A filled pixel is the mean of all known ones, weighted by exp(-distance / reach): a blur that finds the nearest
    however far they are, in two matrix products, since distance is along rows plus along columns. It is computed for
    one pixel in `_STRIDE` along rows and columns, from as many: enough for a blur.
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
    """Weights (count, count) that the places of a line have for each other."""
    places = torch.arange(count, device=device)
    return torch.exp(-(places[:, None] - places).abs() / (_REACH * count))


def _dilated(masks: Tensor) -> Tensor:
    wider = masks.clone()
    wider[:, 1:] |= masks[:, :-1]
    wider[:, :-1] |= masks[:, 1:]
    wider[:, :, 1:] |= masks[:, :, :-1]
    wider[:, :, :-1] |= masks[:, :, 1:]
    return wider

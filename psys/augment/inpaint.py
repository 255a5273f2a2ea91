"""Backgrounds without their foregrounds: what is hidden is filled smoothly from what surrounds it."""

import torch
from torch import Tensor

from psys.augment.pixels import from_planes, masks_of, to_planes

_REACH = 1 / 16
"""Of the side: over this distance the weight of a known pixel falls to 1/e."""
_STRIDE = 2
"""Every second pixel along rows and columns is enough for a blur."""
_RIM = 1e-3
"""Weight of a background pixel beside the foreground: masks are a pixel off, and the object's edge must not leak."""


def backgrounds(words: Tensor) -> Tensor:
    """Words (B, H, W) int32 with every pixel in or beside the mask filled, and no mask; black where nothing is known.

    A filled pixel is the mean of all known ones, weighted by exp(-distance / reach): a blur that finds the nearest
    however far they are, in two matrix products, since distance is along rows plus along columns.
    """
    masks = masks_of(words)
    beside = _dilated(masks)
    few, hidden, unsure = (each[:, ::_STRIDE, ::_STRIDE].contiguous() for each in (words, masks, beside))
    weights = torch.where(unsure, _RIM, 1.0).masked_fill(hidden, 0)
    red, green, blue, _ = to_planes(few).unbind(1)
    known = torch.stack([red * weights, green * weights, blue * weights, weights], dim=2)  # (B, rows, 4, columns)
    height, width = masks.shape[1:]
    spread = _falloff(height, known.device) @ known.flatten(2)
    sums = (spread.unflatten(2, known.shape[2:]) @ _falloff(width, known.device).T).transpose(1, 2)  # (B, 4, H, W)
    filled = sums[:, :3] / sums[:, 3:].clamp_min(torch.finfo(sums.dtype).tiny)
    return torch.where(beside, from_planes(filled), words)


def _falloff(side: int, device: torch.device) -> Tensor:
    """Weights (side, known) of the known pixels of a line for each of its pixels."""
    places = torch.arange(side, device=device)
    return torch.exp(-(places[:, None] - places[::_STRIDE]).abs() / (_REACH * side))


def _dilated(masks: Tensor) -> Tensor:
    wider = masks.clone()
    wider[:, 1:] |= masks[:, :-1]
    wider[:, :-1] |= masks[:, 1:]
    wider[:, :, 1:] |= masks[:, :, :-1]
    wider[:, :, :-1] |= masks[:, :, 1:]
    return wider

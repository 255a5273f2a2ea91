"""Lots: one of several, in a whole batch at once, without waiting for a GPU to say how many there are."""

import torch
from torch import Tensor


def draw(allowed: Tensor, repeats: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """In each of N rows, `repeats` times, one of the places that are `allowed` (N, K) bool, all as likely.

    Returns the places (repeats * N,) int64 and whether there is any (repeats * N,) bool: row i is at i, N + i, 2N + i,
    ... The generator lives on the device of `allowed`.
    """
    counted = allowed.cumsum(dim=1, dtype=torch.int32)
    total = counted[:, -1:]
    lots = torch.rand(len(allowed), repeats, device=allowed.device, generator=generator) * total
    # A product may be rounded up to the total; without any allowed place the first one stands in.
    places = torch.searchsorted(counted, lots.int().minimum(total - 1), right=True)
    return places.T.flatten(), (total > 0).T.repeat(repeats, 1).flatten()

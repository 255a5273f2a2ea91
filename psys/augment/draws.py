"""Random choice among allowed positions for a whole batch, without synchronising with the GPU."""

import torch
from torch import Tensor


def draw(allowed: Tensor, repeats: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one allowed position of each of N rows, uniformly and independently, `repeats` times.

    allowed: (N, K) bool, on the generator's device. Returns positions (repeats * N,) int64 and, for each, whether its
    row has an allowed position, (repeats * N,) bool; row i has entries i, N + i, 2N + i, ...
    """
    counted = allowed.cumsum(dim=1, dtype=torch.int32)
    total = counted[:, -1:]
    draws = torch.rand(len(allowed), repeats, device=allowed.device, generator=generator) * total
    # A product may be rounded up to the total. A row without an allowed position gets position 0.
    positions = torch.searchsorted(counted, draws.int().minimum(total - 1), right=True)
    return positions.T.flatten(), (total > 0).T.repeat(repeats, 1).flatten()

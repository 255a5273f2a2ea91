"""The order of the training samples, and the seeds of random draws: both depend on positions in the run alone."""

from functools import lru_cache

import torch
from torch import Tensor

from psys.data.batch_plan import BatchPlan


def samples_of(batch: int, plan: BatchPlan, seed: int) -> Tensor:
    """Indices of the samples in `batch`: its part of the epoch's permutation. Returns (<= batch_size,) int64."""
    epoch, first, last = plan.place(batch)
    return _epoch_order(plan.samples, seed, epoch)[first:last]


@lru_cache(maxsize=2)
def _epoch_order(samples: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(batch_seed(seed, epoch, stream=0)))


def batch_seed(seed: int, position: int, stream: int) -> int:
    """A seed for the random draws at one position of the run: the draws then do not depend on the worker.

    `stream` keeps apart draws that share a position (0: the epoch's permutation, 1: the batch's augmentation).
    """
    return (seed * 1_000_003 + position) * 2 + stream

"""What tests train in place of a network: a vector of 96 parameters, and gradients without images."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from psys.compute.flat import FlatModel
from psys.compute.step import StepResult
from psys.run.assembly import ledger_of
from psys.run.config import RunConfig
from psys.simulate.worker import Gradient, Workload

COPIES, MAX_BATCHES = 3, 32
SAMPLES = 23
"""Six batches of 4, of which the last has 3."""


class Vector(nn.Module):
    """96 parameters and one running statistic."""

    running: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(COPIES * MAX_BATCHES))
        self.register_buffer("running", torch.zeros(1))


def counting(*models: FlatModel) -> Gradient:
    """-1 at the batch's number, in each of three copies: parameters at rate 1 count how often a batch was applied."""

    def compute(batch: int, model: FlatModel) -> StepResult:
        model.gradient.zero_()
        model.gradient.view(COPIES, MAX_BATCHES)[:, batch] = -1
        model.statistics.fill_(batch)
        return StepResult(0.5, 1, 4, COPIES**0.5)

    return compute


def mixing(*models: FlatModel) -> Gradient:
    """A gradient that depends on every parameter and on the batch, so that no two histories give the same bits."""

    def compute(batch: int, model: FlatModel) -> StepResult:
        positions = torch.arange(len(model.parameters)) + 0.37 * batch
        gradient = torch.sin(positions + model.parameters.flip(0))
        loss = model.parameters.square().mean().item()
        model.gradient.copy_(gradient)
        model.statistics.add_(gradient.sum())
        return StepResult(loss, batch % 5, 4, gradient.norm().item())

    return compute


def workload(config: RunConfig, gradient: Callable[..., Gradient]) -> Workload:
    """Six batches an epoch of `counting` or `mixing` gradients."""
    return Workload(Vector(), partial(ledger_of, config, SAMPLES), gradient)

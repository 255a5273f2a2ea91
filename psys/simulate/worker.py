"""A worker of a run in one process, and what the workers of a run compute."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import nn

from psys.compute.flat import FlatModel
from psys.compute.step import StepResult
from psys.data.store import PreparedStore
from psys.ps.ledger import Ledger
from psys.ps.messages import Grant, Lease, Push
from psys.run.assembly import batch_gradient, initial_ledger, initial_model_for, local_steps
from psys.run.config import RunConfig
from psys.transport.buffered_model import BufferedModel
from psys.transport.worker_calls import Call, Calls, worker_calls

Gradient = Callable[[int, FlatModel], StepResult]
"""Leaves the gradient of a batch at the model's parameters in `model.gradient`, as compute.gradient.BatchGradient."""


class Workload(NamedTuple):
    """What a run trains. A real one is `workload_of(config, store)`; a test may count batches instead."""

    module: nn.Module  # with the initial parameters
    ledger: Callable[[], Ledger]  # makes a new ledger of the run's batches
    gradient: Callable[..., Gradient]  # makes the function that computes with any of the FlatModels given
    store: str = ""  # content hash of the prepared store


def workload_of(config: RunConfig, store: PreparedStore, module: nn.Module | None = None) -> Workload:
    """The batches of `store` and the model of `config`, or `module`. Seeds torch. Raises PsysError as assembly does."""
    if module is None:
        module = initial_model_for(config, store).module
    return Workload(
        module, partial(initial_ledger, config, store), partial(batch_gradient, config, store), store.content_hash
    )


class Worker:
    """Makes the calls of a worker of a real run, one with each `step`; its buffer outlives a restart of the servers."""

    def __init__(self, config: RunConfig, workload: Workload, samples: int) -> None:
        self.model = BufferedModel(copy.deepcopy(workload.module), config)
        self._gradient = local_steps(config, samples, workload.gradient(*self.model.models))
        self._prefetch = config.prefetch
        self.begin()

    def begin(self) -> None:
        """Drop all leases and start with a first call."""
        self.call: Call | None = None
        self.reply: Grant | None = None  # to `call`, and not yet read
        self._calls: Calls = worker_calls(self.model, self._compute, self._prefetch)
        self._damaged = False

    @property
    def ready(self) -> bool:
        """The worker can go on: it has a reply to read, or has not made its first call."""
        return self.call is None or self.reply is not None

    def step(self, damaged: bool) -> Call | None:
        """Compute a batch if it has a lease, read the reply, and return the next call; None ends the run for it.

        `damaged`: the gradient is NaN.
        """
        self._damaged = damaged
        if self.call is not None:
            assert next(self._calls) is None
        try:
            self.call = self._calls.send(self.reply)
        except StopIteration:
            return None
        self.reply = None
        return self.call

    def _compute(self, lease: Lease, grant: Grant) -> Push:
        model = self.model.models[lease.slot]
        result = self._gradient(lease.batch, model, grant.learning_rate)
        if self._damaged:
            model.gradient.fill_(math.nan)
            result = result._replace(gradient_norm=math.nan)
        if math.isfinite(result.gradient_norm):
            self.model.send(lease.slot)
        return Push(lease, *result)

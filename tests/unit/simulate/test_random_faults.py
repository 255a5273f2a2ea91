"""Thousands of runs with faults drawn at random: kills, silence, lost replies, late joiners, NaNs, server restarts.

The gradients count batches (see tests.support.workloads.counting): the parameters prove that every batch was applied
exactly once, and that no slot was overwritten before its gradient was applied.
"""

from collections import Counter
from random import Random
from typing import Any

import pytest
import torch

from psys.ps.events import UpdateApplied
from psys.ps.optimizer import OptimizerConfig
from psys.ps.policy import rounds_ahead
from psys.ps.schedule import ScheduleConfig
from psys.run.audit import RecomputedAccount
from psys.run.config import RunConfig
from psys.simulate.in_process import InProcessRun
from tests.support.faulty_run import WEIGHTS, FaultyRun
from tests.support.workloads import COPIES, MAX_BATCHES, counting, mixing, workload

BATCHES, SEEDS = 12, 40
PLAIN = OptimizerConfig(momentum=0, nesterov=False)


def settings(**changes: object) -> RunConfig:
    usual: dict[str, object] = {
        "epochs": 2,
        "batch_size": 4,
        "optimizer": PLAIN,
        "schedule": ScheduleConfig(kind="constant", learning_rate=1.0),
        "checkpoint_every": "3",
    }
    return RunConfig.model_validate({**usual, **changes})


def surviving_updates(run: InProcessRun) -> list[UpdateApplied]:
    """The updates that were not undone by a restart from an earlier version."""
    updates: dict[int, UpdateApplied] = {}
    for event in run.log:
        if isinstance(event, UpdateApplied):
            updates[event.version] = event
    return [updates[version] for version in sorted(updates) if version <= run.version]


def check_accounting(run: InProcessRun) -> None:
    assert run.end is not None
    account = run.end.account
    assert (account.batches, account.applied, account.unfinished, account.lost) == (BATCHES, BATCHES, 0, 0)
    assert account.leased == BATCHES + account.reissued
    recomputed = RecomputedAccount()
    for event in run.log:
        recomputed.add(event)
    recomputed.check()
    assert recomputed.problems == []
    assert recomputed.account() == account


def check_parameters(run: InProcessRun) -> None:
    expected = torch.zeros(MAX_BATCHES)
    for update in surviving_updates(run):
        sizes = [run.ledger.size(batch) for batch in update.batches]
        for batch, size in zip(update.batches, sizes, strict=True):
            expected[batch] += size / sum(sizes)
    for copy in run.state().parameters.view(COPIES, MAX_BATCHES):
        torch.testing.assert_close(copy, expected)


POLICIES: dict[str, dict[str, Any]] = {
    "sync": {"mode": "sync"},
    "async": {"mode": "async"},
    "ssp": {"mode": "ssp"},
    "a backup worker": {"mode": "sync", "backup_workers": 1},
    "two backup workers": {"mode": "sync", "backup_workers": 2},
    "bound 0": {"mode": "async", "max_staleness": 0},
    "bound 1": {"mode": "async", "max_staleness": 1},
    "sync, then async": {"mode": "async", "sync_epochs": 0.8},
    "sync, then a bound": {"mode": "async", "sync_epochs": 0.8, "max_staleness": 1},
    "sync, then ssp": {"mode": "ssp", "sync_epochs": 1.0},
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("prefetch", [0, 1])
def test_every_batch_is_applied_exactly_once_whatever_fails(policy: str, prefetch: int) -> None:
    faults: Counter[str] = Counter()
    late = 0
    for seed in range(SEEDS):
        draw = Random(seed)
        staleness = draw.randint(0, 3)
        changes = {"staleness": staleness, "servers": draw.randint(1, 3), "wire": draw.choice(["fp32", "bf16", "fp16"])}
        config = settings(prefetch=prefetch, **changes, **POLICIES[policy])
        faulty = FaultyRun(InProcessRun(config, workload(config, counting), draw.randint(1, 4)), seed)
        faulty.drive()
        check_accounting(faulty.run)
        check_parameters(faulty.run)
        faults += faulty.faults
        late += faulty.run.ledger.account().late
        if config.mode != "async" and not config.sync_epochs:
            bound = rounds_ahead(config.mode, staleness, prefetch)
            assert all(max(update.staleness) <= bound for update in surviving_updates(faulty.run))
    assert min(faults[name] for name in WEIGHTS) > SEEDS / 10
    assert (late > SEEDS / 2) == ("backup" in policy or "bound" in policy)


@pytest.mark.parametrize("servers", [1, 3])
def test_sync_gives_the_same_bits_whatever_the_order_and_whenever_the_servers_restart(servers: int) -> None:
    """As long as the same number of workers take part in every round."""
    config = settings(mode="sync", servers=servers, optimizer=OptimizerConfig(), schedule=ScheduleConfig())
    states = []
    for seed in range(40):
        random = Random(seed)
        run = InProcessRun(config, workload(config, mixing), awaited=3)
        for _ in range(3):
            run.join()
        restarts, checkpoint = (2, run.checkpoint()) if seed else (0, None)
        while run.end is None:
            run.step(random.choice(run.ready()))
            waiting = [name for name, worker in run.workers.items() if not worker.ready]
            if waiting and random.random() < 0.3:
                run.repeat_call(random.choice(waiting))
            if random.random() < 0.1:
                checkpoint = run.checkpoint()
            if restarts and random.random() < 0.1 and len(run.workers) == 3:  # no worker has left
                restarts -= 1
                run.restart(checkpoint)
        check_accounting(run)
        states.append(run.state())
    assert all(torch.equal(state.parameters, states[0].parameters) for state in states)
    assert all(torch.equal(state.statistics, states[0].statistics) for state in states)

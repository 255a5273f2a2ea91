"""A run that has ended is resumed with other settings: more epochs, another batch size, another mode."""

from random import Random
from typing import Any

import pytest
import torch

from psys.ps.events import SettingsChanged, UpdateApplied
from psys.ps.ledger import Ledger
from psys.ps.policy import Mode
from psys.run.audit import RecomputedAccount
from psys.run.config import RunConfig
from psys.run.events import surviving
from psys.run.segments import segments
from psys.simulate.in_process import InProcessRun
from psys.simulate.worker import Workload
from tests.support.faulty_run import FaultyRun
from tests.support.workloads import COPIES, MAX_BATCHES, SAMPLES, Vector, counting

SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "optimizer": {"momentum": 0, "nesterov": False},
    "schedule": {"kind": "constant", "learning_rate": 1.0},
}


def workload(config: RunConfig) -> Workload:
    def ledger() -> Ledger:
        return Ledger(config.epochs, SAMPLES, config.batch_size, config.earlier_batch_sizes)

    return Workload(Vector(), ledger, counting)


def check(run: InProcessRun, batches: int) -> None:
    """Every batch was applied once, by the ledger, by the events and by the parameters."""
    assert run.end is not None
    account = run.end.account
    assert (account.batches, account.applied, account.unfinished, account.lost) == (batches, batches, 0, 0)
    recomputed = RecomputedAccount()
    for event in run.log:
        recomputed.add(event)
    recomputed.check()
    assert recomputed.problems == []
    assert recomputed.account() == account
    expected = torch.zeros(MAX_BATCHES)
    for update in (event for event in surviving(run.log) if isinstance(event, UpdateApplied)):
        sizes = [run.ledger.size(batch) for batch in update.batches]
        for batch, size in zip(update.batches, sizes, strict=True):
            expected[batch] += size / sum(sizes)
    for copy in run.state().parameters.view(COPIES, MAX_BATCHES):
        torch.testing.assert_close(copy, expected)


def changed(run: InProcessRun, **settings: Any) -> RunConfig:
    """Log the change of settings at the run's version; the settings after it."""
    before = run.config.model_dump(mode="json")
    changes = {name: (before[name], value) for name, value in settings.items()}
    run.log.append(SettingsChanged(version=run.version, changed=changes))
    return RunConfig.model_validate({**before, **settings})


@pytest.mark.parametrize("mode", ["sync", "async", "ssp"])
def test_accounting_of_an_extended_run_is_exact_whatever_fails(mode: Mode) -> None:
    for seed in range(60):
        draw = Random(seed)
        config = RunConfig.model_validate({**SETTINGS, "mode": draw.choice(["sync", "async", "ssp"]), "epochs": 2})
        run = InProcessRun(config, workload(config), draw.randint(1, 3))
        FaultyRun(run, seed).drive()
        check(run, batches=12)
        larger = {"batch_size": 8, "earlier_batch_sizes": [[4, 2]]} if seed % 2 else {}
        config = changed(run, mode=mode, epochs=4, **larger)
        run.resume(run.saves[-1], config, workload(config))
        FaultyRun(run, seed + 1).drive()
        check(run, batches=18 if larger else 24)
        (segment,) = segments(surviving(run.log))
        assert segment.version <= 12
        assert segment.changed["epochs"] == (2, 4)


def test_accounting_is_exact_when_a_larger_batch_size_leaves_fewer_batches() -> None:
    config = RunConfig.model_validate({**SETTINGS, "mode": "async", "epochs": 4})
    run = InProcessRun(config, workload(config), awaited=1)
    name = run.join()
    run.run(updates=6)
    checkpoint = run.checkpoint()  # a batch of the second epoch is leased
    run.kill(name)
    assert run.ledger.batches == 24
    config = changed(run, batch_size=12, earlier_batch_sizes=[[4, 1]])
    run.resume(checkpoint, config, workload(config))
    run.join()
    run.run()
    check(run, batches=12)
    assert run.ledger.epochs_done == 4
    assert [(segment.version, segment.epoch) for segment in segments(surviving(run.log))] == [(6, 1.0)]

"""A run whose gradients are not finite any more ends, and saves no state that may be worthless."""

import math
from random import Random

import pytest

from psys.compute.flat import FlatModel
from psys.compute.step import StepResult
from psys.ps.controller import MAX_DAMAGED
from psys.ps.events import PushRefused, RunDiverged, RunEnded, SnapshotSaved, UpdateApplied
from psys.ps.policy import Mode
from psys.run.audit import RecomputedAccount
from psys.run.config import RunConfig
from psys.run.divergence import last_sound_version
from psys.run.events import surviving
from psys.simulate.in_process import InProcessRun
from psys.simulate.replay import replay
from psys.simulate.worker import Gradient
from tests.support.workloads import mixing, workload

SOUND = 7


def diverged_run(mode: Mode, workers: int = 2, prefetch: int = 0) -> InProcessRun:
    """Every gradient that is computed once version SOUND is reached is NaN."""
    settings = {"mode": mode, "prefetch": prefetch, "epochs": 3, "batch_size": 4, "checkpoint_every": "3"}
    config = RunConfig.model_validate({**settings, "snapshot_epochs": 0.5})
    run = InProcessRun(config, workload(config, mixing), awaited=workers)
    for _ in range(workers):
        run.join()
    run.run(updates=SOUND)
    while run.end is None:
        run.step(run.ready()[0], damaged=True)
        run.tick()
    return run


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("mode", ["sync", "async", "ssp"])
def test_diverged_run_ends_and_keeps_only_the_states_before(mode: Mode, prefetch: int) -> None:
    run = diverged_run(mode, prefetch=prefetch)
    (diverged,) = (event for event in run.log if isinstance(event, RunDiverged))
    assert run.end is not None
    assert not run.end.complete
    assert run.end.failure == f"training diverged: the gradient of batch {diverged.batch} was not finite 3 times"
    assert isinstance(run.log[-1], RunEnded)
    before = run.log[: run.log.index(diverged)]
    damaged = [event for event in before if isinstance(event, PushRefused) and event.receipt == "damaged"]
    of_the_batch = [event.lease.version for event in damaged if event.lease.batch == diverged.batch]
    assert len(of_the_batch) == MAX_DAMAGED
    assert diverged.version == min(of_the_batch)
    assert before[-1] == damaged[-1]
    assert {saved.save.version for saved in run.saves if saved.save.ledger} == {3, 6}
    assert all(event.version <= SOUND for event in run.log if isinstance(event, SnapshotSaved))


def test_two_damaged_gradients_of_a_batch_do_not_end_the_run() -> None:
    config = RunConfig(mode="async", epochs=1, batch_size=4)
    run = InProcessRun(config, workload(config, mixing), awaited=1)
    name = run.join()
    run.step(name)
    for _ in range(MAX_DAMAGED - 1):
        run.step(name, damaged=True)
    run.run()
    assert run.end is not None
    assert run.end.failure is None
    assert run.end.account.damaged == MAX_DAMAGED - 1
    assert run.saves[-1].save.ledger


@pytest.mark.parametrize("mode", ["sync", "async", "ssp"])
def test_accounting_of_a_diverged_run_is_exact(mode: Mode) -> None:
    run = diverged_run(mode)
    recomputed = RecomputedAccount()
    for event in run.log:
        recomputed.add(event)
    recomputed.check()
    assert recomputed.problems == []


def test_diverged_run_is_replayed_to_the_same_end() -> None:
    run = diverged_run("async")
    again = replay(run.log, run.config, workload(run.config, mixing))
    assert [e for e in again.log if isinstance(e, RunDiverged)] == [e for e in run.log if isinstance(e, RunDiverged)]
    assert again.version == run.version == sum(isinstance(event, UpdateApplied) for event in run.log)


def parabola(*models: FlatModel) -> Gradient:
    """The loss mean((1 + x)^2), 1 at the start, and its noisy gradient: a rate above 2 makes every step larger."""

    def compute(batch: int, model: FlatModel) -> StepResult:
        loss = (1 + model.parameters).square().mean().item()
        model.gradient.copy_(1 + model.parameters + 0.3 * math.sin(batch))
        return StepResult(loss, 0, 4, model.gradient.norm().item())

    return compute


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("mode", ["sync", "async", "ssp"])
def test_last_sound_version_of_a_run_whose_rate_rises_until_it_diverges(mode: Mode, prefetch: int) -> None:
    found = []
    for seed in range(20):
        random, workers = Random(seed), 1 + seed % 3
        schedule = {"kind": "constant", "learning_rate": 100, "warmup_epochs": 20}
        settings = {"mode": mode, "prefetch": prefetch, "epochs": 20, "batch_size": 4, "checkpoint_every": "1"}
        optimizer = {"momentum": 0, "nesterov": False, "weight_decay": 0}
        config = RunConfig.model_validate({**settings, "schedule": schedule, "optimizer": optimizer})
        run = InProcessRun(config, workload(config, parabola), awaited=workers)
        for _ in range(workers):
            run.join()
        run.run(random.choice)
        sound = last_sound_version(surviving(run.log))
        assert sound is not None
        states = [saved.state for saved in run.saves if saved.save.version <= sound]
        # A worker may read parameters that are ahead of their version, and an update's loss is a mean.
        assert all((1 + state.parameters).square().mean() < 30 for state in states)
        found.append(sound)
    assert max(found) > 0

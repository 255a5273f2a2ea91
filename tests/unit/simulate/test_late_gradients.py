"""Compensation of late gradients, and a momentum vector for each worker, in whole runs."""

from collections import Counter
from random import Random
from typing import Any

import pytest
import torch

from psys.compute.flat import FlatModel
from psys.data.store import PreparedStore
from psys.ps.events import UpdateApplied
from psys.ps.policy import Mode
from psys.ps.store import SliceState
from psys.run.assembly import batch_gradient
from psys.run.audit import RecomputedAccount
from psys.run.config import RunConfig
from psys.run.events import surviving
from psys.simulate.in_process import InProcessRun
from psys.simulate.replay import replay
from psys.simulate.worker import workload_of
from tests.support.faulty_run import FaultyRun
from tests.support.workloads import COPIES, MAX_BATCHES, counting, mixing, workload

POWER = {"compensation": {"staleness_power": 1.0, "anneal_share": 0.5}}
CONSTANT = {"compensation": {"delay": "constant", "delay_strength": 0.5}}
ADAPTIVE = {"compensation": {"delay": "adaptive"}}
GAP_AWARE = {"compensation": {"gap_aware": True}}
ALL = {"compensation": {"staleness_power": 0.5, "delay": "adaptive", "gap_aware": True}}
DANA = {"optimizer": {"momentum_per_worker": True}}
LATE = [POWER, CONSTANT, ADAPTIVE, GAP_AWARE, ALL, DANA, {**DANA, **ALL}]
NAMES = ["power", "constant", "adaptive", "gap-aware", "all", "DANA", "DANA and all"]


def settings(**changes: Any) -> RunConfig:
    return RunConfig.model_validate({"mode": "async", "epochs": 4, "batch_size": 4, **changes})


def trained(config: RunConfig, workers: int, seed: int = 0) -> InProcessRun:
    """A whole run in which workers act in a random order; no two histories give the same bits."""
    run = InProcessRun(config, workload(config, mixing), awaited=workers)
    for _ in range(workers):
        run.join()
    run.run(Random(seed).choice)
    return run


def same(one: SliceState, other: SliceState) -> bool:
    return torch.equal(one.parameters, other.parameters) and torch.equal(one.statistics, other.statistics)


@pytest.mark.parametrize("late", LATE, ids=NAMES)
def test_async_with_one_worker_equals_plain_training_bit_for_bit(late: dict[str, Any]) -> None:
    assert same(trained(settings(**late), 1).state(), trained(settings(), 1).state())


@pytest.mark.parametrize("late", [CONSTANT, ADAPTIVE, GAP_AWARE, ALL], ids=["constant", "adaptive", "gap-aware", "all"])
def test_sync_is_not_changed(late: dict[str, Any]) -> None:
    assert same(trained(settings(mode="sync", **late), 3).state(), trained(settings(mode="sync"), 3).state())


@pytest.mark.parametrize("late", LATE, ids=NAMES)
@pytest.mark.parametrize("prefetch", [0, 1])
def test_several_servers_equal_one_bit_for_bit_and_not_plain_training(late: dict[str, Any], prefetch: int) -> None:
    one, three = (trained(settings(prefetch=prefetch, servers=servers, **late), 3).state() for servers in (1, 3))
    assert same(one, three)
    plain = trained(settings(prefetch=prefetch), 3).state()
    assert not torch.equal(one.parameters, plain.parameters)


@pytest.mark.parametrize("late", [POWER, CONSTANT, ADAPTIVE, GAP_AWARE, ALL], ids=NAMES[:5])
@pytest.mark.parametrize("wire", ["fp32", "bf16", "fp16", "topk"])
def test_rounds_compensate_each_gradient_for_any_wire_format(late: dict[str, Any], wire: str) -> None:
    """Formats that are decoded as a whole give what fp32 gives, up to their rounding."""
    changes = {"mode": "ssp", "staleness": 2, "topk_share": 1.0, **late}
    got, exact = (trained(settings(wire=each, **changes), 3).state() for each in (wire, "fp32"))
    plain = trained(settings(**{**changes, "compensation": {}}), 3).state()
    effect = (exact.parameters - plain.parameters).norm()
    assert (got.parameters - exact.parameters).norm() < effect / 2


@pytest.mark.parametrize("late", LATE, ids=NAMES)
@pytest.mark.parametrize("wire", ["fp32", "bf16"])
def test_resumed_run_does_not_depend_on_the_servers_before_and_after(late: dict[str, Any], wire: str) -> None:
    """Three workers until the checkpoint, two from there on."""
    states = []
    for before, after in ((1, 1), (3, 2)):
        run = InProcessRun(config := settings(servers=before, wire=wire, **late), workload(config, mixing), awaited=3)
        for _ in range(3):
            run.join()
        run.run(Random(1).choice, updates=10)
        checkpoint = run.checkpoint()
        config = settings(servers=after, wire=wire, **late)
        run.awaited = 2
        run.resume(checkpoint, config, workload(config, mixing))
        assert run.state().optimizer.keys() == set(config.state_names())
        run.join(), run.join()
        run.run(Random(2).choice)
        states.append(run.state())
    assert same(*states)


def test_resumed_run_changes_its_compensation() -> None:
    """Running means that a checkpoint lacks begin; those that the run needs no more are left out."""
    config = settings()
    run = InProcessRun(config, workload(config, mixing), awaited=3)
    for updates, late in ((10, ALL), (15, POWER), (20, GAP_AWARE), (None, {**DANA, **GAP_AWARE})):
        config = settings(**late)
        run.resume(run.checkpoint(), config, workload(config, mixing))
        assert run.state().optimizer.keys() == set(config.state_names())
        for _ in range(3):
            run.join()
        before = run.state().parameters
        run.run(Random(1).choice, updates)
        assert run.state().parameters.isfinite().all()
        assert (run.state().parameters != before).all()
    assert run.end is not None
    assert (run.end.account.applied, run.end.account.lost) == (run.ledger.batches, 0)


def test_one_worker_with_its_momentum_vector_equals_nesterov_sgd_over_a_resume() -> None:
    config = settings(**DANA)
    run = InProcessRun(config, workload(config, mixing), awaited=1)
    run.join()
    run.run(updates=10)
    run.restart(run.checkpoint())
    run.run()
    assert same(run.state(), trained(settings(), 1).state())


COUNTING = {"schedule": {"kind": "constant", "learning_rate": 1.0}, "checkpoint_every": "3", "epochs": 2}
PLAIN = {"optimizer": {"momentum": 0, "nesterov": False}}
# With so little momentum the parameters still count batches, up to rounding.
COUNTING_DANA = {"optimizer": {"momentum_per_worker": True, "momentum": 1e-7}}


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("mode", ["sync", "async", "ssp"])
def test_every_batch_is_applied_once_with_its_damping_whatever_fails(mode: Mode, prefetch: int) -> None:
    """A batch's parameter has not moved since it was read: only the damping changes what it counts."""
    damped: Counter[bool] = Counter()
    for seed in range(40):
        draw = Random(seed)
        optimizer = COUNTING_DANA if mode == "async" and seed % 2 else PLAIN
        config = settings(
            **COUNTING, **optimizer, **ALL, mode=mode, prefetch=prefetch, servers=draw.randint(1, 3), staleness=2
        )
        run = InProcessRun(config, workload(config, counting), draw.randint(1, 4))
        FaultyRun(run, seed).drive()
        recomputed = RecomputedAccount()
        for event in run.log:
            recomputed.add(event)
        recomputed.check()
        assert run.end is not None
        assert (recomputed.problems, recomputed.account()) == ([], run.end.account)
        expected = torch.zeros(MAX_BATCHES)
        for update in (event for event in surviving(run.log) if isinstance(event, UpdateApplied)):
            sizes = [run.ledger.size(batch) for batch in update.batches]
            for batch, size, staleness in zip(update.batches, sizes, update.staleness, strict=True):
                expected[batch] += config.compensation.damping(staleness, 0) * size / sum(sizes)
                damped[staleness > 1] += 1
        for copy in run.state().parameters.view(COPIES, MAX_BATCHES):
            torch.testing.assert_close(copy, expected)
    assert damped[True] > 40 or mode == "sync"


def test_annealed_damping_follows_the_epochs() -> None:
    config = settings(**COUNTING, **PLAIN, compensation={"staleness_power": 1.0, "anneal_share": 0.5})
    run = InProcessRun(config, workload(config, counting), awaited=4)
    for _ in range(4):
        run.join()
    run.run(Random(0).choice)
    expected, progress, undamped = torch.zeros(MAX_BATCHES), 0.0, 0
    for update in (event for event in run.log if isinstance(event, UpdateApplied)):
        (batch,), (staleness,) = update.batches, update.staleness
        expected[batch] = staleness ** -max(0.0, 1 - progress / 0.5) if staleness else 1
        undamped += staleness > 1 and progress >= 0.5
        progress = update.epochs / config.epochs
    torch.testing.assert_close(run.state().parameters[:MAX_BATCHES], expected, rtol=0, atol=1e-5)
    assert expected[: run.ledger.batches].min() < 0.7
    assert undamped


def test_run_with_compensation_is_replayed_from_its_events_bit_for_bit() -> None:
    config = settings(**DANA, **ALL)
    run = trained(config, 3)
    assert same(replay(run.log, config, workload(config, mixing)).state(), run.state())


@pytest.mark.parametrize("late", LATE, ids=NAMES)
def test_training_with_four_workers_lowers_the_loss_on_real_images(
    late: dict[str, Any], small_store: PreparedStore
) -> None:
    config = settings(
        **late,
        epochs=6,
        batch_size=16,
        precision="fp32",
        validation_share=0.0,
        schedule={"learning_rate": 0.05, "warmup_epochs": 1},
    )
    run = InProcessRun(config, workload_of(config, small_store), awaited=4)
    for _ in range(4):
        run.join()
    model = FlatModel(run._workload.module)
    gradient = batch_gradient(config, small_store, model)

    def loss_after(updates: int) -> float:
        run.run(Random(updates).choice, updates=updates)
        state = run.state()
        model.load(state.parameters, state.statistics)
        return gradient(5, model).loss

    before = loss_after(1)
    assert loss_after(60) < before - 0.4

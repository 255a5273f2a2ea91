"""Backup workers, the bound on staleness and the switch from sync: what they compute, and that no batch is lost."""

from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from psys.data.store import PreparedStore
from psys.ps.codec import TopK
from psys.ps.events import LeasesReturned, PushRefused, UpdateApplied
from psys.ps.store import SliceState
from psys.run.config import RunConfig
from psys.simulate.in_process import InProcessRun
from psys.simulate.worker import workload_of
from tests.support.workloads import COPIES, MAX_BATCHES, counting, mixing, workload

PLAIN: dict[str, Any] = {
    "optimizer": {"momentum": 0, "nesterov": False},
    "schedule": {"kind": "constant", "learning_rate": 1.0},
}
BATCHES = 18
"""In three epochs of the workload."""


def started(workers: int, mixed: bool = True, **settings: Any) -> InProcessRun:
    config = RunConfig.model_validate({"epochs": 3, "batch_size": 4, **settings})
    run = InProcessRun(config, workload(config, mixing if mixed else counting), awaited=workers)
    for _ in range(workers):
        run.join()
    return run


def same(a: SliceState, b: SliceState) -> bool:
    return all(torch.equal(vector, b.vectors()[name]) for name, vector in a.vectors().items())


def updates(run: InProcessRun) -> list[UpdateApplied]:
    return [event for event in run.log if isinstance(event, UpdateApplied)]


def check_end(run: InProcessRun, late: bool = True) -> None:
    """Every batch was applied once, and pushes were late or none was."""
    assert run.end is not None
    account = run.end.account
    assert (account.applied, account.unfinished, account.lost) == (BATCHES, 0, 0)
    assert (account.late > 0) == late
    assert account.late == sum(isinstance(event, PushRefused) and event.receipt == "late" for event in run.log)
    given_up = [
        lease for event in run.log if isinstance(event, LeasesReturned) and event.late for lease in event.leases
    ]
    assert account.reissued == len(given_up)


NO_EFFECT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"mode": "sync"}, {"backup_workers": 0}),
    ({"mode": "async"}, {"max_staleness": 1000}),
    ({"mode": "async"}, {"sync_epochs": 0.0}),
    ({"mode": "ssp"}, {"sync_epochs": 0.0}),
    ({"mode": "sync"}, {"mode": "async", "sync_epochs": 100.0}),
    ({"mode": "sync"}, {"mode": "ssp", "staleness": 0, "sync_epochs": 1.0}),
    ({"mode": "sync"}, {"mode": "ssp", "sync_epochs": 100.0}),
]


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize(("plain", "changes"), NO_EFFECT)
def test_policy_without_effect_gives_the_same_bits(
    plain: dict[str, Any], changes: dict[str, Any], prefetch: int
) -> None:
    states = []
    for settings in (plain, {**plain, **changes}):
        run = started(3, prefetch=prefetch, **settings)
        run.run(Random(7).choice)
        check_end(run, late=False)
        states.append(run.state())
    assert same(*states)


@pytest.mark.parametrize(("plain", "changes"), NO_EFFECT)
def test_policy_without_effect_gives_the_same_bits_on_real_images(
    small_store: PreparedStore, plain: dict[str, Any], changes: dict[str, Any]
) -> None:
    states = []
    for settings in (plain, {**plain, **changes}):
        usual = {"model": "resnet8", "batch_size": 8, "precision": "fp32", "servers": 2}
        config = RunConfig.model_validate({**usual, **settings})
        run = InProcessRun(config, workload_of(config, small_store), awaited=2)
        run.join(), run.join()
        run.run(Random(3).choice, updates=6)
        states.append(run.state())
    assert same(*states)


def test_update_waits_for_all_but_the_backup_workers_and_the_late_one_goes_on_with_the_next_round() -> None:
    run = started(3, mode="sync", backup_workers=1)
    for name in ("worker0", "worker1", "worker2"):
        run.step(name)  # all have a batch
    run.step("worker1")
    assert run.version == 0
    run.step("worker2")
    assert run.version == 1
    assert updates(run)[-1].batches == (1, 2)
    (given_up,) = (event for event in run.log if isinstance(event, LeasesReturned))
    assert given_up.late
    assert [(lease.batch, lease.worker) for lease in given_up.leases] == [(0, "worker0")]
    run.step("worker1")  # with the batch that was given up
    assert run.version == 1  # two gradients make an update, and worker0 is still computing
    run.step("worker0")
    refused = run.log[-1]
    assert isinstance(refused, PushRefused)
    assert (refused.receipt, refused.lease) == ("late", given_up.leases[0])
    assert run.version == 1
    run.step("worker0")  # it takes part in the round that is open
    assert run.version == 2
    assert [(update.batches, update.attempts) for update in updates(run)][1] == ((0, 4), (1, 0))
    assert run.ledger.account().late == 1


@pytest.mark.parametrize("prefetch", [0, 1])
def test_worker_that_is_always_late_holds_nobody_up(prefetch: int) -> None:
    run = started(3, mixed=False, mode="sync", backup_workers=1, prefetch=prefetch, **PLAIN)
    slow = "worker0"
    while run.end is None:
        quick = [name for name in run.ready() if name != slow]
        run.step(quick[0] if quick and run.now % 7 else slow)
        run.now += 1
        run.tick()
    check_end(run)
    assert {lease.worker for event in run.log if isinstance(event, LeasesReturned) for lease in event.leases} == {slow}


@pytest.mark.parametrize("prefetch", [0, 1])
def test_late_worker_takes_the_place_of_the_next_one_that_is_slow(prefetch: int) -> None:
    run = started(3, mode="sync", backup_workers=1, prefetch=prefetch)
    names = list(run.workers)
    for name in names * (1 + prefetch):
        run.step(name)
    for slow, version in ((names[0], 3), (names[1], 6)):
        while run.version < version:
            run.step(next(name for name in run.ready() if name != slow))
        last = updates(run)[-1].workers
        assert slow not in last
        assert len(set(last)) == 2


def test_last_batches_are_applied_with_fewer_workers_than_backups() -> None:
    run = started(4, mixed=False, mode="sync", backup_workers=3, **PLAIN)
    run.run(Random(1).choice, updates=3)
    for name in list(run.workers)[1:]:
        run.kill(name)
    run.run()
    assert run.end is not None
    assert run.end.account.unfinished == 0


def test_stopped_run_does_not_apply_what_is_given_up() -> None:
    run = started(3, mode="sync", backup_workers=1)
    for name in list(run.workers):
        run.step(name)
    run.stop()
    run.run()
    assert run.end is not None
    account = run.end.account
    assert (account.applied, account.late, account.lost) == (2, 1, 0)
    assert updates(run)[-1].batches == (0, 1)


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_no_gradient_of_more_than_the_bound_is_applied(max_staleness: int) -> None:
    run = started(4, mode="async", max_staleness=max_staleness)
    run.run(Random(2).choice)
    check_end(run)
    assert max(max(update.staleness) for update in updates(run)) == max_staleness


def test_bound_of_0_makes_progress_with_prefetch_and_one_worker() -> None:
    run = started(1, mode="async", max_staleness=0, prefetch=1)
    run.run()
    check_end(run)
    assert {update.staleness for update in updates(run)} == {(0,)}


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("second", [{"mode": "async"}, {"mode": "async", "max_staleness": 2}, {"mode": "ssp"}])
def test_switch_comes_once_the_epochs_in_mode_sync_are_applied(second: dict[str, Any], prefetch: int) -> None:
    runs = []
    for settings in ({"mode": "sync"}, {**second, "sync_epochs": 1.0}):
        run = started(3, prefetch=prefetch, **settings)
        run.run(Random(5).choice, updates=2)
        runs.append(run)
    assert same(runs[0].state(), runs[1].state())
    assert [update.batches for update in updates(runs[1])] == [(0, 1, 2), (3, 4, 5)]
    run.run(Random(5).choice)
    check_end(run, late=any(isinstance(event, PushRefused) for event in run.log))
    later = updates(run)[2:]
    if second["mode"] == "async":
        assert {len(update.batches) for update in later} == {1}
    assert max(max(update.staleness) for update in later) > prefetch


def test_run_resumed_after_the_switch_begins_in_the_second_mode() -> None:
    run = started(2, mixed=False, mode="async", sync_epochs=1.0, **PLAIN)
    run.run(updates=5)
    assert [len(update.batches) for update in updates(run)] == [2, 2, 2, 1, 1]
    run.restart(run.checkpoint())
    run.run(updates=9)
    assert [len(update.batches) for update in updates(run)][5:] == [1] * 4
    run.run()
    assert run.end is not None
    assert (run.end.account.applied, run.end.account.unfinished) == (BATCHES, 0)


def check_counts(parameters: Tensor) -> None:
    """Of gradients that count batches: each batch counts once."""
    expected = torch.zeros(MAX_BATCHES)
    expected[:BATCHES] = 1
    for copy in parameters.view(COPIES, MAX_BATCHES):
        torch.testing.assert_close(copy, expected)


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize(
    ("workers", "settings"),
    [
        (2, {"mode": "sync", "backup_workers": 1}),
        (3, {"mode": "async", "max_staleness": 1}),
        (3, {"mode": "async", "max_staleness": 1, "prefetch": 1}),
        (1, {"mode": "async", "max_staleness": 0, "prefetch": 1}),
    ],
)
def test_topk_counts_each_batch_once_in_what_it_sent_and_kept_back(
    workers: int, settings: dict[str, Any], servers: int
) -> None:
    """Updates are of one gradient: what has not arrived at the end lies in the workers' residuals."""
    for seed in range(10):
        run = started(workers, mixed=False, wire="topk", topk_share=0.01, servers=servers, **settings, **PLAIN)
        models = [worker.model for worker in run.workers.values()]
        run.run(Random(seed).choice)
        check_end(run)
        assert all(len(update.batches) == 1 for update in updates(run))
        kept = torch.zeros(COPIES * MAX_BATCHES)
        for model in models:
            codecs = [codec for codec in model._gradient_codecs if isinstance(codec, TopK)]
            parts = [part for codec in codecs if (part := codec._residual) is not None]
            kept += torch.cat(parts) if parts else 0
        assert kept.any()
        check_counts(run.state().parameters - kept)

"""Runs whose leases are several batches: each batch counts once, whatever fails, and runs are replayed."""

from random import Random

import pytest
import torch
from torch import Tensor

from psys.ps.codec import Wire
from psys.ps.events import UpdateApplied
from psys.ps.optimizer import OptimizerConfig
from psys.ps.policy import Mode
from psys.run.audit import RecomputedAccount
from psys.run.config import RunConfig
from psys.run.events import surviving
from psys.simulate.in_process import InProcessRun
from psys.simulate.replay import replay
from tests.support.faulty_run import FaultyRun
from tests.support.workloads import COPIES, MAX_BATCHES, counting, mixing, workload

PER_EPOCH = 6  # batches


def settings(local_steps: int, **changes: object) -> RunConfig:
    usual: dict[str, object] = {
        **{"mode": "async", "epochs": 2, "batch_size": 4, "local_steps": local_steps, "checkpoint_every": "3"},
        "optimizer": {"momentum": 0, "nesterov": False},
        "schedule": {"kind": "constant", "learning_rate": 1.0},
    }
    return RunConfig.model_validate({**usual, **changes})


def batches_of(lease: int, local_steps: int) -> range:
    """The batches of a lease: those of an epoch are divided into as many whole leases as fit, and a rest."""
    epoch, position = divmod(lease, -(-PER_EPOCH // local_steps))
    first = position * local_steps
    return range(PER_EPOCH * epoch + first, PER_EPOCH * epoch + min(first + local_steps, PER_EPOCH))


@pytest.mark.parametrize("mode", ["sync", "async", "ssp"])
@pytest.mark.parametrize("prefetch", [0, 1])
def test_every_batch_is_applied_exactly_once_whatever_fails(mode: Mode, prefetch: int) -> None:
    for seed in range(120):
        draw = Random(seed)
        steps = draw.choice([2, 3, 4, 7])
        config = settings(steps, mode=mode, prefetch=prefetch, servers=draw.randint(1, 3))
        run = InProcessRun(config, workload(config, counting), draw.randint(1, 4))
        FaultyRun(run, seed).drive()
        leases = 2 * -(-PER_EPOCH // steps)
        assert run.end is not None
        account = run.end.account
        assert (account.batches, account.applied, account.unfinished, account.lost) == (leases, leases, 0, 0)
        recomputed = RecomputedAccount()
        for event in run.log:
            recomputed.add(event)
        recomputed.check()
        assert recomputed.problems == []
        expected = torch.zeros(MAX_BATCHES)
        for update in (event for event in surviving(run.log) if isinstance(event, UpdateApplied)):
            sizes = [run.ledger.size(lease) for lease in update.batches]
            for lease, size in zip(update.batches, sizes, strict=True):
                expected[batches_of(lease, steps)] += size / sum(sizes)
        assert expected.count_nonzero() == 2 * PER_EPOCH
        if mode == "async":
            assert set(expected.tolist()) == {0.0, 1.0}
        for copy in run.state().parameters.view(COPIES, MAX_BATCHES):
            torch.testing.assert_close(copy, expected)


def test_replay_of_a_run_with_faults_gives_the_same_bits() -> None:
    for seed in range(60):
        wire = ("fp32", "bf16", "fp16", "topk")[seed % 4]
        schedule = {"kind": "cosine", "learning_rate": 0.1}  # hence each grant has another rate
        config = settings(2 + seed % 3, servers=1 + seed % 3, wire=wire, optimizer=OptimizerConfig(), schedule=schedule)
        faulty = FaultyRun(InProcessRun(config, workload(config, mixing), 1 + seed % 2), seed, restarts=0)
        faulty.drive()
        state = faulty.run.state()
        again = replay(faulty.run.log, config, workload(config, mixing)).state()
        assert all(torch.equal(vector, again.vectors()[name]) for name, vector in state.vectors().items())


def parameters(config: RunConfig) -> Tensor:
    """Where one worker ends."""
    run = InProcessRun(config, workload(config, mixing), awaited=1)
    run.join()
    run.run()
    return run.state().parameters


SLOW = {"schedule": {"kind": "cosine", "learning_rate": 0.01}}


@pytest.mark.parametrize("wire", ["fp32", "bf16", "fp16", "topk"])
def test_one_worker_without_momentum_ends_where_sgd_does(wire: Wire) -> None:
    """But for the rate, which changes once a lease instead of once a batch, and for what the wire rounds."""
    alone, several = (parameters(settings(steps, wire=wire, topk_share=1.0, **SLOW)) for steps in (1, 3))
    assert (several - alone).norm() < 0.15 * alone.norm()
    constant = {"schedule": {"kind": "constant", "learning_rate": 0.01}}
    alone, several = (parameters(settings(steps, wire=wire, topk_share=1.0, **constant)) for steps in (1, 3))
    assert (several - alone).norm() < (1e-5 if wire in ("fp32", "topk") else 1e-2) * alone.norm()


def test_prefetching_worker_looks_ahead_by_the_sum_that_it_has_not_pushed() -> None:
    ahead = OptimizerConfig(momentum=0.9)
    plain, exact, late = (
        parameters(settings(3, optimizer=optimizer, prefetch=prefetch, **SLOW))
        for optimizer, prefetch in ((ahead, 0), (ahead, 1), (ahead.model_copy(update={"look_ahead": False}), 1))
    )
    assert (exact - plain).norm() < 0.2 * (late - plain).norm()


def test_other_optimizers_than_sgd_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'local_steps' above 1 needs .* sgd, got adam"):
        settings(2, optimizer={"kind": "adam"})


def test_resumed_run_with_another_batch_size_keeps_the_leases_of_its_earlier_epochs() -> None:
    config = settings(3, epochs=1)
    run = InProcessRun(config, workload(config, counting), awaited=1)
    run.join()
    run.run()
    config = settings(3, epochs=3, batch_size=8, earlier_batch_sizes=[[4, 1]])
    run.resume(run.saves[-1], config, workload(config, counting))
    run.join()
    run.run()
    assert run.end is not None
    assert (run.end.account.applied, run.end.account.unfinished) == (2 + 1 + 1, 0)  # leases of 12 and 11, 23, 23 images
    expected = torch.zeros(MAX_BATCHES)
    expected[: 6 + 3 + 3] = 1
    assert torch.equal(run.state().parameters, expected.repeat(COPIES))

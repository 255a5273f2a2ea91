"""A run of mode async is computed again from its events alone."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from psys.data.store import PreparedStore
from psys.errors import PsysError
from psys.ps.codec import Wire
from psys.ps.events import PushRefused, RunEvent, RunStarted, UpdateApplied, WorkerJoined
from psys.ps.optimizer import OptimizerConfig
from psys.ps.policy import Mode
from psys.run.config import RunConfig
from psys.run.events import EventLog, read_events
from psys.simulate.in_process import InProcessRun
from psys.simulate.replay import replay
from psys.simulate.worker import workload_of
from tests.support.faulty_run import FaultyRun
from tests.support.workloads import mixing, workload


def settings(mode: Mode = "async", prefetch: int = 0, servers: int = 1, wire: Wire = "fp32") -> RunConfig:
    return RunConfig(
        mode=mode, prefetch=prefetch, servers=servers, wire=wire, epochs=2, batch_size=4, checkpoint_every="3"
    )


def faulty_run(config: RunConfig, seed: int) -> InProcessRun:
    faulty = FaultyRun(InProcessRun(config, workload(config, mixing), awaited=1 + seed % 2), seed, restarts=0)
    faulty.drive()
    return faulty.run


def assert_same_bits(run: InProcessRun, other: InProcessRun) -> None:
    state, again = run.state(), other.state()
    assert state.version == again.version
    assert all(torch.equal(vector, again.vectors()[name]) for name, vector in state.vectors().items())


def test_replay_of_a_run_with_faults_gives_the_same_bits() -> None:
    for seed in range(100):
        config = settings(servers=1 + seed % 3, wire=("fp32", "bf16", "fp16")[seed % 3])
        run = faulty_run(config, seed)
        assert_same_bits(run, replay(run.log, config, workload(config, mixing)))


def test_replay_of_a_run_with_late_gradients_gives_the_same_bits() -> None:
    late = 0
    for seed in range(60):
        config = settings(servers=1 + seed % 2, wire=("fp32", "topk")[seed % 2])
        config = config.model_copy(update={"max_staleness": seed % 2, "topk_share": 0.1})
        run = faulty_run(config, seed)
        assert_same_bits(run, replay(run.log, config, workload(config, mixing)))
        late += run.ledger.account().late
    assert late > 60


def test_replay_of_real_images_from_the_file_gives_the_same_bits(small_store: PreparedStore, tmp_path: Path) -> None:
    config = RunConfig(mode="async", epochs=1, batch_size=16, validation_share=0, wire="topk")
    run = InProcessRun(config, workload_of(config, small_store), awaited=2)
    run.join(), run.join()
    run.run(Random(5).choice, updates=4)
    run.join()
    run.run(Random(6).choice)
    with EventLog(tmp_path / "events.jsonl") as file:
        for event in run.log:
            file.write(event)
    again = replay(read_events(tmp_path / "events.jsonl"), config, workload_of(config, small_store))
    assert run.version == 10
    assert_same_bits(run, again)


def test_replay_names_the_first_update_that_differs() -> None:
    config = settings()
    run = faulty_run(config, seed=0)
    differing: list[RunEvent] = [
        replace(event, loss=event.loss + 1) if isinstance(event, UpdateApplied) and event.version >= 5 else event
        for event in run.log
    ]
    with pytest.raises(PsysError, match=r"the replay differs in update 5: loss is \S+, and was \S+"):
        replay(differing, config, workload(config, mixing))


def test_replay_with_other_settings_is_refused() -> None:
    config = settings()
    run = faulty_run(config, seed=1)
    other = config.model_copy(update={"optimizer": OptimizerConfig(momentum=0.5)})
    with pytest.raises(PsysError, match="the replay differs in update"):
        replay(run.log, other, workload(other, mixing))


@pytest.mark.parametrize("lost", [WorkerJoined, PushRefused, UpdateApplied, RunStarted])
def test_events_with_a_gap_are_refused(lost: type[RunEvent]) -> None:
    config = settings()
    log = next(
        run.log
        for run in (faulty_run(config, seed) for seed in range(100))
        if any(isinstance(event, PushRefused) for event in run.log)
    )
    gap = next(number for number, event in enumerate(log) if isinstance(event, lost))
    with pytest.raises(PsysError, match=r"cannot replay|the replay differs"):
        replay(log[:gap] + log[gap + 1 :], config, workload(config, mixing))


@pytest.mark.parametrize("mode", ["sync", "ssp"])
def test_other_modes_are_refused(mode: Mode) -> None:
    config = settings(mode)
    with pytest.raises(PsysError, match=f"cannot replay a run in mode {mode}"):
        replay([], config, workload(config, mixing))


def test_a_run_with_prefetch_is_refused() -> None:
    config = settings(prefetch=1)
    with pytest.raises(PsysError, match="cannot replay a run with prefetch"):
        replay([], config, workload(config, mixing))


def test_a_run_that_begins_in_sync_is_refused() -> None:
    config = settings().model_copy(update={"sync_epochs": 0.5})
    with pytest.raises(PsysError, match="cannot replay a run with epochs in mode sync"):
        replay([], config, workload(config, mixing))


def test_a_resumed_run_is_refused() -> None:
    config = settings()
    run = faulty_run(config, seed=0)
    with pytest.raises(PsysError, match="not those of one start of a run"):
        replay([*run.log, run.log[0]], config, workload(config, mixing))

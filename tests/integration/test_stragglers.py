"""Slow workers, and a crash and a return, in real processes: who computes how much, and where the time goes."""

import signal
from collections import Counter
from pathlib import Path

import pytest

from psys.ps.events import WorkerJoined
from psys.run.directory import RunDirectory
from psys.run.worker_times import worker_times
from tests.support.processes import (
    PS,
    audited,
    events,
    finished,
    run,
    small_run,
    started,
    updates,
    updating,
    wait_until,
)

PLAN = """
faults: [{worker: 1, step: 3, kind: kill}]
slow_workers:
  - {worker: 0, factor: 6}
  - {factor: 1.2, spread: 0.3}
"""


def check_times(path: Path) -> None:
    """Each worker computed, and its parts fill at most the time since its first request."""
    joined = {event.worker: event.seconds for event in reversed(events(path, WorkerJoined))}
    for worker, parts in worker_times(updates(path))["workers"].items():
        assert parts["compute"] > 0
        assert min(parts.values()) >= 0
        last = [update.seconds for update in updates(path) if worker in update.workers][-1]
        assert sum(parts.values()) <= last - joined[worker] + 0.01  # rounding


@pytest.mark.parametrize("prefetch", ["0", "1"])
def test_slow_worker_computes_fewer_batches_and_a_killed_one_returns_as_another(
    small_store_path: Path, tmp_path: Path, prefetch: str
) -> None:
    path, plan = tmp_path / "runs" / "r", tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    more = ("--mode", "async", "--epochs", "5000", "--prefetch", prefetch, "--faults", str(plan))
    with started(PS, *small_run(small_store_path, "r", *more), cwd=tmp_path) as process:
        wait_until(lambda: "worker2" in updating(path), "an update of the worker after the killed one", process)
        since = len(updates(path))
        wait_until(
            lambda: len(updates(path)) >= since + 60, "sixty updates of the slow worker and the new one", process
        )
        process.send_signal(signal.SIGINT)
        assert finished(process).code == 130
    counts = Counter(worker for update in updates(path)[since:] for worker in update.workers)
    assert counts["worker1"] == 0
    assert 0 < 2 * counts["worker0"] < counts["worker2"]
    audited(path)
    check_times(path)


def test_time_of_workers_in_sync_is_in_the_result(small_store_path: Path, tmp_path: Path) -> None:
    """A fast worker waits for a slow one in every round."""
    path, plan = tmp_path / "runs" / "r", tmp_path / "plan.yaml"
    plan.write_text("slow_workers: [{worker: 0, factor: 4}]")
    more = ("--mode", "sync", "--epochs", "3", "--faults", str(plan))
    done = run(PS, *small_run(small_store_path, "r", *more), cwd=tmp_path)
    assert done.code == 0, done.err
    assert "computed / waited / communicated" in done.out
    check_times(path)
    spent = RunDirectory(path).result()["time"]["workers"]
    assert spent["worker0"]["compute"] > spent["worker1"]["compute"]
    assert spent["worker1"]["wait"] > spent["worker0"]["wait"]

"""Runs of real processes computed again in one process: from their settings in sync, from their events in async."""

import signal
from pathlib import Path

import pytest

from psys.data.store import PreparedStore
from psys.ps.events import SnapshotSaved
from psys.run.directory import RunDirectory
from psys.run.events import read_events
from psys.simulate.replay import replay
from psys.simulate.worker import workload_of
from tests.support.processes import (
    PS,
    events,
    family,
    finished,
    small_run,
    started,
    updating,
    wait_until,
)
from tests.support.reference import computed_again, one_thread, same_bits, snapshot, vectors

ENDLESS = ("--epochs", "5000")
LATE = (
    *("--wire", "fp16", "--optimizer.momentum-per-worker", "--compensation.staleness-power", "0.5"),
    *("--compensation.delay", "adaptive", "--compensation.gap-aware"),
)


def check_replay(path: Path) -> None:
    """A replay of the run's events makes the run's snapshots."""
    run = RunDirectory(path)
    config = run.config()
    with one_thread():
        replayed = replay(read_events(run.events), config, workload_of(config, PreparedStore.open(config.store)))
    saved = {save.version: vectors(state) for save, state in replayed.saves if save.snapshot}
    versions = {int(file.stem) for file in run.snapshots.iterdir()}
    assert max(versions) == run.newest_snapshot() > 0
    for version in versions:
        assert same_bits(snapshot(path, version), saved[version]), version


def test_sync_run_with_prefetch_equals_a_run_in_one_process(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    more = ("--mode", "sync", "--prefetch", "1", "--servers", "2", "--wire", "bf16")
    with started(PS, *small_run(small_store_path, "r", *ENDLESS, *more), cwd=tmp_path) as process:
        wait_until(lambda: len(events(path, SnapshotSaved)) == 4, "four snapshots", process)
        process.send_signal(signal.SIGINT)
        done = finished(process)
    assert done.code == 130, done.err
    version = events(path, SnapshotSaved)[-1].version
    assert same_bits(snapshot(path, version), computed_again(path, version))


@pytest.mark.parametrize("late", [(), LATE], ids=["plain", "late gradients"])
def test_async_run_with_faults_is_replayed(late: tuple[str, ...], small_store_path: Path, tmp_path: Path) -> None:
    path, plan = tmp_path / "runs" / "r", tmp_path / "plan.yaml"
    faults = [
        *("{worker: 0, step: 3, kind: nan}", "{worker: 1, step: 4, kind: drop_reply}"),
        "{worker: 0, step: 9, kind: kill}",
    ]
    plan.write_text(f"faults: [{', '.join(faults)}]")
    more = ("--mode", "async", "--servers", "2", "--faults", str(plan), *late)
    with started(PS, *small_run(small_store_path, "r", *ENDLESS, *more), cwd=tmp_path) as process:
        wait_until(lambda: "worker2" in updating(path), "an update of the worker after the killed one", process)
        reached = len(events(path, SnapshotSaved))
        wait_until(lambda: len(events(path, SnapshotSaved)) > reached + 1, "two more snapshots", process)
        for member in family(process):
            member.kill()
    check_replay(path)

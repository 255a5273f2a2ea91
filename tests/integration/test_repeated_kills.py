"""Workers and servers killed many times at random, with --full; `benchmarks.storm` measures the same."""

import random
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from psys.ps.events import WorkerJoined
from psys.run.directory import RunDirectory
from tests.support.processes import (
    PS,
    audited,
    events,
    family,
    finished,
    resumes,
    servers_of,
    small_run,
    started,
    updates,
    updating,
    wait_until,
    workers_of,
)
from tests.support.reference import computed_again, same_bits, snapshot

WORKERS_KILLED, SERVERS_KILLED = 100, 50
ENDLESS = ("--epochs", "5000")
VERSION = 27
"""A version with a snapshot, at the end of epoch 6."""


@pytest.fixture(autouse=True)
def only_in_full_length(full: bool) -> None:
    if not full:
        pytest.skip("takes minutes: runs with --full")


def has_updates(path: Path, number: int) -> bool:
    return len(updates(path)) >= number


def has_joins(path: Path, number: int) -> bool:
    return len(events(path, WorkerJoined)) >= number


def has_resumes(path: Path, number: int) -> bool:
    return len(resumes(path)) >= number


@pytest.mark.timeout(1200)
def test_workers_killed_repeatedly(small_store_path: Path, tmp_path: Path) -> None:
    path, chance = tmp_path / "runs" / "r", random.Random(1)
    segments = set(Path("/dev/shm").iterdir())
    with started(PS, *small_run(small_store_path, "r", *ENDLESS, workers=3), cwd=tmp_path) as process:
        wait_until(lambda: len(updating(path)) == 3, "updates of three workers", process)
        members = family(process)
        for kill in range(1, WORKERS_KILLED + 1):
            reached = len(updates(path)) + chance.randint(1, 40)
            wait_until(partial(has_updates, path, reached), "updates between two kills", process)
            chance.choice(workers_of(process)).kill()
            wait_until(partial(has_joins, path, 3 + kill), "the new worker", process)
        process.send_signal(signal.SIGINT)
        done = finished(process)
        assert not [member for member in members if member.is_running()]
    assert done.code == 130, done.err
    assert done.err.count("was killed by SIGKILL") == WORKERS_KILLED
    applied = Counter(batch for update in updates(path) for batch in update.batches)
    assert set(applied.values()) == {1}
    audited(path)
    assert set(Path("/dev/shm").iterdir()) <= segments
    assert not list(path.rglob("*.tmp"))


@pytest.mark.timeout(1200)
def test_servers_killed_repeatedly(small_store_path: Path, tmp_path: Path) -> None:
    path, chance = tmp_path / "runs" / "r", random.Random(2)
    more = ("--mode", "sync", "--checkpoint-every", "1")
    with started(PS, *small_run(small_store_path, "r", *ENDLESS, *more), cwd=tmp_path) as process:
        for kill in range(1, SERVERS_KILLED + 1):
            reached = len(updates(path)) + chance.randrange(30)
            wait_until(partial(has_updates, path, reached), "updates between two kills", process)
            wait_until(lambda: bool(servers_of(process)), "a server to kill", process)
            servers_of(process)[0].kill()
            wait_until(partial(has_resumes, path, kill), "the servers to restart", process)
        wait_until(RunDirectory(path).snapshot_path(VERSION).exists, "the snapshot to compare", process)
        process.send_signal(signal.SIGINT)
        done = finished(process)
    assert done.code == 130, done.err
    audited(path)
    assert same_bits(snapshot(path, VERSION), computed_again(path, VERSION))

"""Runs of real processes compared bit for bit with runs in one process."""

import signal
from pathlib import Path

import torch

from psys.data.store import PreparedStore
from psys.ps.events import SnapshotSaved
from psys.run.directory import RunDirectory
from psys.run.events import read_events
from psys.run.snapshots import load_snapshot
from psys.simulate.replay import replay
from psys.simulate.worker import workload_of
from tests.support.processes import (
    PS,
    audited,
    events,
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
from tests.support.reference import computed_again, one_thread, same_bits, snapshot, vectors


def test_sync_run_equals_a_run_in_one_process() -> None:
    ...

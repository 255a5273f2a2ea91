"""Runs whose output nobody reads, and runs on terminals that go away."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest

from psys.ps.events import CheckpointSaved, WorkerLeft
from psys.run.directory import RunDirectory
from tests.support.processes import (
    DEADLINE_SECONDS,
    PS,
    audited,
    events,
    finished,
    join_address,
    run,
    small_run,
    started,
    updates,
    updating,
    wait_until,
)

EPOCH = ("--epochs", "1", "--model", "mlp16")
ENDLESS = ("--epochs", "5000", "--model", "mlp16")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3")


def test_run_without_output_and_with_a_long_tmpdir(small_store_path: Path, tmp_path: Path) -> None:
    temporary = tmp_path / ("long" * 25)
    temporary.mkdir()
    command = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>/dev/full', sys.executable, PS]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    subprocess.run(
        [*command, *small_run(small_store_path, "r", *EPOCH)],
        cwd=tmp_path,
        env=environment,
        check=True,
        timeout=DEADLINE_SECONDS,
    )
    assert RunDirectory(tmp_path / "runs" / "r").complete
    assert audited(tmp_path / "runs" / "r").unfinished == 0


def test_reader_that_goes_away_after_the_first_line(small_store_path: Path, tmp_path: Path) -> None:
    with started(PS, *small_run(small_store_path, "r", *EPOCH), cwd=tmp_path) as process:
        join_address(process)
        for stream in (process.stdout, process.stderr):
            assert stream
            stream.close()
        assert process.wait(DEADLINE_SECONDS) == 0
    assert RunDirectory(tmp_path / "runs" / "r").complete


@pytest.mark.parametrize(("launcher", "code"), [((), 130), (TORCHRUN, 1)], ids=["one process", "torchrun"])
def test_run_on_a_terminal_that_goes_away_is_saved(
    small_store_path: Path, tmp_path: Path, launcher: Sequence[str], code: int
) -> None:
    """The processes receive SIGHUP, and what they write fails. torchrun turns every exit code into 1."""
    path = tmp_path / "runs" / "r"
    emulator, terminal = pty.openpty()

    def take_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, *launcher, PS, *small_run(small_store_path, "r", *ENDLESS)],
        cwd=tmp_path,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=take_terminal,
        text=True,
    )
    try:
        os.close(terminal)
        wait_until(lambda: len(updates(path)) > 5, "some updates", process)
        os.close(emulator)
        assert process.wait(DEADLINE_SECONDS) == code
    finally:
        process.kill()
    end = audited(path)
    assert events(path, CheckpointSaved)[-1].version == len(updates(path)) == end.applied


def test_joined_worker_leaves_at_sighup(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    with started(PS, *small_run(small_store_path, "r", *ENDLESS, workers=1), cwd=tmp_path) as process:
        address = join_address(process)
        with started(PS, "--role", "worker", "--join", address, "--threads", "1", cwd=tmp_path) as joined:
            wait_until(lambda: len(updating(path)) == 2, "updates of both workers", process, joined)
            joined.send_signal(signal.SIGHUP)
            left = finished(joined)
        wait_until(lambda: bool(events(path, WorkerLeft)), "the worker to have left", process)
        process.send_signal(signal.SIGHUP)
        done = finished(process)
    assert (left.code, done.code) == (130, 130), left.err + done.err
    assert [event.reason for event in events(path, WorkerLeft)] == ["left", "left"]


def test_error_of_the_settings_is_printed_by_one_rank(tmp_path: Path) -> None:
    done = run(*TORCHRUN, PS, "--mode", "fast", cwd=tmp_path)
    assert done.code == 1
    assert done.err.count("psys: error: ") == 1

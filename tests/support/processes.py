"""psys as a user starts it: in processes of its own, with a deadline, all ended with the test."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
from rich.console import Console

from psys.ps.events import RunEnded, RunEvent, RunStarted, UpdateApplied
from psys.run.audit import audit
from psys.run.events import read_events

EventT = TypeVar("EventT", bound=RunEvent)

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "support" / "programs"
PS = str(ROOT / "launch" / "ps.py")
DEADLINE_SECONDS = 240.0


@dataclass
class Done:
    code: int
    out: str
    err: str


def run(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> Done:
    """Run `python ARGUMENTS` to its end."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=_environment(env),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        preexec_fn=restore_signals,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def started(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> Iterator["subprocess.Popen[str]"]:
    """Start `python ARGUMENTS`; the process and its descendants are killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=_environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=restore_signals,
    )
    try:
        yield process
    finally:
        for each in family(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.communicate()


def finished(process: "subprocess.Popen[str]") -> Done:
    """Wait for the end of a started process."""
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    return Done(process.returncode, out, err)


def join_address(process: "subprocess.Popen[str]") -> str:
    """HOST:PORT at which workers join a started run, from what the run prints.

    Reads the lines up to there; `finished` returns the others.
    """
    assert process.stderr
    printed = b""
    # One byte at a time: a buffer would keep what `communicate` is to return.
    while not (found := re.search(rb"--join (\S+)\n", printed)):
        byte = os.read(process.stderr.fileno(), 1)
        assert byte, f"the run ended before it printed its address: {printed.decode()}"
        printed += byte
    return found[1].decode()


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port that only processes with SO_REUSEADDR can listen on, as `psys.transport.address.listen` does."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


def family(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The process and its descendants, those that are alive."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_until(condition: Callable[[], bool], what: str, *running: "subprocess.Popen[str]") -> None:
    """Poll until `condition` holds; fails with `what` at the deadline, or when one of the processes `running` ends."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    ended: subprocess.Popen[str] | None = None
    while not condition():
        assert ended is None, f"a process ended before {what}: {finished(ended)}"
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        ended = next((process for process in running if process.poll() is not None), None)
        time.sleep(0.02)  # between two polls of another process's files


def events(run: Path, kind: type[EventT]) -> list[EventT]:
    """The events of that kind that the run in this directory has written so far."""
    path = run / "events.jsonl"
    return [event for event in read_events(path) if isinstance(event, kind)] if path.exists() else []


def updates(run: Path) -> list[UpdateApplied]:
    """The updates that a run has made so far."""
    return events(run, UpdateApplied)


def resumes(run: Path) -> list[RunStarted]:
    """The starts of a run's servers after the first one."""
    return [start for start in events(run, RunStarted) if start.event == "resume"]


def updating(run: Path, since: int = 0) -> set[str]:
    """The workers whose gradients are in the run's updates, but for the first `since` updates."""
    return {worker for update in updates(run)[since:] for worker in update.workers}


def audited(run: Path) -> RunEnded:
    """Totals of a run that ended, whose events contain every batch exactly once and add up to the totals."""
    audit(run / "events.jsonl", Console(quiet=True))
    end = events(run, RunEnded)[-1]
    assert end.lost == 0
    return end


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The living worker processes of a local run, in the order of their start."""
    return _descendants_named(process, "psys-worker")


def servers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The living server processes of a local run, by number."""
    return sorted(_descendants_named(process, "psys-server"), key=lambda each: each.name())


def _descendants_named(process: "subprocess.Popen[str]", name: str) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for each in family(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            if each.name().startswith(name) and each.status() != psutil.STATUS_ZOMBIE:
                found[each.pid] = each
    # A process that it is about to start has its name until it executes another program.
    own = [each for each in found.values() if each.ppid() not in found]
    return sorted(own, key=lambda each: each.create_time())


def small_run(store: Path, name: str, *more: str, workers: int = 2) -> Sequence[str]:
    """Arguments of a run of seconds on a small store."""
    return (
        *("--config", str(ROOT / "configs" / "sample.yaml"), "--store", str(store), "--name", name),
        *("--workers", str(workers), "--threads", "1", "--batch-size", "16", "--augment.views", "1"),
        *("--precision", "fp32", "--no-export", *more),
    )


def restore_signals() -> None:
    """A suite started in the background or by `nohup` ignores signals, and its processes would inherit that."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _environment(more: dict[str, str] | None) -> dict[str, str]:
    # As in a user's shell, where no torchrun and no Ray runs around the tests.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TORCHELASTIC_", "RAY_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        clean.pop(name, None)
    return {**clean, **(more or {})}

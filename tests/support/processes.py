"""psys started as a user starts it: a process of its own, with a deadline, and nothing left behind."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from psys.run.events import read_events

ROOT = Path(__file__).parents[2]
PS = str(ROOT / "launch" / "ps.py")
DEADLINE_SECONDS = 240.0


@dataclass
class Done:
    code: int
    out: str
    err: str


def run(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> Done:
    """Run `python ARGUMENTS` to its end."""
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=_environment(env), capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )
    return Done(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def started(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> Iterator["subprocess.Popen[str]"]:
    """Start `python ARGUMENTS`; whatever it started is ended with the block."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=_environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
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


def family(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The process and all its descendants that live."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look until `condition` holds; fails with `what` at the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)  # between two looks at another process's files, not a guess at how long it takes


def events(run_path: Path, kind: str) -> list[dict[str, Any]]:
    """What a run has written so far of that kind."""
    path = run_path / "events.jsonl"
    return [event for event in read_events(path) if event["event"] == kind] if path.exists() else []


def updates(run_path: Path) -> list[dict[str, Any]]:
    """Updates that a run has made so far."""
    return events(run_path, "update")


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The living worker processes of a local run, in the order they were started."""
    return _nodes_of(process, "psys-worker")


def servers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The living server processes of a local run, by number."""
    return sorted(_nodes_of(process, "psys-server"), key=lambda each: each.name())


def _nodes_of(process: "subprocess.Popen[str]", name: str) -> list[psutil.Process]:
    found = []
    for each in family(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            if each.name().startswith(name) and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return sorted(found, key=lambda each: each.create_time())


def small_run(store: Path, name: str, *more: str, workers: int = 2) -> Sequence[str]:
    """Arguments of a run of seconds on a small store."""
    return (
        *("--config", str(ROOT / "configs" / "sample.yaml"), "--store", str(store), "--name", name),
        *("--workers", str(workers), "--batch-size", "16", "--augment.views", "1", "--precision", "fp32", *more),
    )


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(more: dict[str, str] | None) -> dict[str, str]:
    # As from a user's shell: no trace of a torchrun or a Ray that these tests may run under.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TORCHELASTIC_", "RAY_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        clean.pop(name, None)
    return {**clean, **(more or {})}

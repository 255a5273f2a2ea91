"""One trial: a run of `psys train` in a process of its own, on an idle machine, none of whose processes is left."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil
import yaml

from psys.cluster.processes import kill_when_parent_ends, leave_signals
from psys.config import read_yaml, validate
from psys.errors import ERROR
from psys.run.config import RunConfig
from psys.run.faults import FaultPlan, read_plan
from psys.tradeoff.plan import Trial

_MARK = "PSYS_TRIAL"  # variable of the environment of all processes of a trial: its study and name
_BUSY = 0.25  # share of the cores in use, above which a trial would share the machine
_MEASURED_SECONDS = 1.0
_END_SECONDS = 10.0  # for processes to end after SIGTERM
_REASON_CHARACTERS = 400


class Finished(NamedTuple):
    """How a trial went."""

    reason: str | None
    """why it failed, in one line; None: it is done"""
    started: float
    """seconds since 1970"""
    ended: float
    load: float
    """share of the machine's cores that were busy before the start, 0 to 1"""
    host: str


def run_trial(trial: Trial, folder: Path, idle_wait: float, timeout: float | None = None) -> Finished:
    """Run a trial from its beginning once the machine is idle, or `idle_wait` seconds have passed.

    A trial that takes longer than `timeout` seconds is ended, and has failed. Leaves `trials/NAME/` (its run
    directory), `configs/NAME.yaml` and `logs/NAME.log` in `folder`. However the call ends, no process of the trial is
    left.
    """
    spec, runs, log = write_settings(trial, folder), folder / "trials", folder / "logs" / f"{trial.name}.log"
    shutil.rmtree(runs / trial.name, ignore_errors=True)
    log.parent.mkdir(exist_ok=True)
    load = _load_when_idle(idle_wait)
    started = time.time()
    command = [sys.executable, "-m", "psys", "train", "--config", str(spec), "--name", trial.name, "--runs", str(runs)]
    mark = _mark(folder, trial.name)
    # Ray's variables are those of a task, in which a run that prepares its store starts a Ray of its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {_MARK: mark}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=partial(kill_when_parent_ends, os.getpid()),
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_processes(mark)
    reason = f"it was ended after {timeout:g} s" if code is None else _reason(code, log) if code else None
    return Finished(reason, started, time.time(), load, socket.gethostname())


def write_settings(trial: Trial, folder: Path) -> Path:
    """Write `configs/NAME.yaml`, and its fault plan beside it, in `folder`; what `read_settings` reads."""
    file, faults = _settings_files(trial.name, folder)
    file.parent.mkdir(exist_ok=True)
    settings = trial.settings
    faults.unlink(missing_ok=True)
    if trial.faults:
        faults.write_text(yaml.safe_dump(trial.faults, sort_keys=False), encoding="utf-8")
        settings = settings | {"faults": str(faults.absolute())}
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return file


def read_settings(name: str, folder: Path) -> tuple[RunConfig, FaultPlan]:
    """Settings that a trial was started with, without the place of its fault plan, and that plan."""
    file, faults = _settings_files(name, folder)
    settings = read_yaml(file)
    settings.pop("faults", None)
    return validate(RunConfig, settings, str(file)), read_plan(faults if faults.exists() else None)


@contextlib.contextmanager
def stop_signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt within the block, as SIGINT does."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in leave_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_trials(folder: Path) -> None:
    """End the processes of all trials of the study in `folder`, as a study that was killed may have left them."""
    _end_processes(_mark(folder, ""))


def _end_processes(mark: str) -> None:
    """End the processes of the trials whose mark begins with `mark`: by SIGTERM, and after 10 s by SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        while found := [process for process in psutil.process_iter() if _mark_of(process).startswith(mark)]:
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            if psutil.wait_procs(found, _END_SECONDS)[1]:
                break


def _settings_files(name: str, folder: Path) -> tuple[Path, Path]:
    return folder / "configs" / f"{name}.yaml", folder / "configs" / f"{name}.faults.yaml"


def _load_when_idle(wait: float) -> float:
    # Not the load average: for a minute it counts the trial before this one.
    deadline = time.monotonic() + wait
    while (load := psutil.cpu_percent(_MEASURED_SECONDS) / 100) > _BUSY and time.monotonic() < deadline:
        pass
    return load


def _mark(folder: Path, name: str) -> str:
    return f"{folder.resolve()}/{name}"


def _mark_of(process: psutil.Process) -> str:
    try:
        return process.environ().get(_MARK, "")
    except (psutil.Error, OSError):  # of another user, or it has ended
        return ""


def _reason(code: int, log: Path) -> str:
    """Why a run failed: the last error in its output, or else how it ended and the last line of its output."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    if errors:
        return errors[-1][:_REASON_CHARACTERS]
    how = f"it was killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with code {code}"
    return f"{how}: {lines[-1].strip()}"[:_REASON_CHARACTERS] if lines else how

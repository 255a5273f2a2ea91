"""What the benchmarks share: commands under watch, medians and spreads, tables, results with what they depend on."""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from psys.errors import PsysError
from psys.run import directory as rundir

ROOT = Path(__file__).parents[1]
_FAREWELL_SECONDS = 60.0  # for a command to end after SIGTERM


class Running:
    """Commands that run side by side in the repository; leaving the context ends them, gently if they can.

    Their output goes to `log`; `variables` are added to their environment.
    """

    def __init__(self, commands: Iterable[Sequence[object]], log: Path, **variables: object) -> None:
        self._log = log
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        self._children: list[psutil.Popen] = []
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that this context is left then as well
        try:
            with log.open("wb") as output:
                for command in commands:
                    # A session of its own: Ctrl-C is for this process, which then ends its children in order.
                    self._children.append(
                        psutil.Popen(
                            [sys.executable, *map(str, command)],
                            cwd=ROOT,
                            env=environment,
                            stdin=subprocess.DEVNULL,
                            stdout=output,
                            stderr=output,
                            start_new_session=True,
                        )
                    )
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.stop()

    def processes(self) -> Iterator[psutil.Process]:
        """The commands and all their descendants."""
        for child in self._children:
            yield child
            with contextlib.suppress(psutil.NoSuchProcess):
                yield from child.children(recursive=True)

    def named(self, name: str) -> Iterator[psutil.Process]:
        """Those whose name begins so."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith(name) and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def wait(self, done: Callable[[], bool], timeout_seconds: float, poll_seconds: float = 0.1) -> None:
        """Until `done()`. Raises PsysError with its last words if a command ends before, or if time is up."""
        deadline = time.monotonic() + timeout_seconds
        while not done():
            ended = [child for child in self._children if child.poll() is not None]
            if ended or time.monotonic() > deadline:
                what = f"ended with code {ended[0].returncode}" if ended else f"not there after {timeout_seconds:.0f} s"
                command = " ".join((ended or self._children)[0].args[1:])
                said = " / ".join(self._log.read_text(errors="replace").strip().splitlines()[-3:])
                raise PsysError(f"{command}: {what}; last words: {said}")
            time.sleep(poll_seconds)

    def pause(self) -> None:
        """Take the processor from all of them, until `resume`."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        """Let them go on."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def stop(self) -> None:
        """Terminate the commands, and kill whatever is left of them and their descendants after a minute."""
        self.resume()
        family = list(self.processes())
        for child in self._children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        _, alive = psutil.wait_procs(family, timeout=_FAREWELL_SECONDS)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive)


def count(text: str) -> int:
    """An argument of at least 1. Raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got '{text}'")
    return int(text)


def prepared_sample(path: Path) -> None:
    """See to it that there is a store of the sample at `path`. Raises PsysError if it cannot be made."""
    if not path.exists():
        command = [sys.executable, "-m", "psys.cli", "prepare", "--source", "sample"]
        if subprocess.run([*command, "--stores", path.parent, "--name", path.name], cwd=ROOT).returncode:
            raise PsysError(f"could not prepare the sample at {path}")


def environment() -> dict[str, Any]:
    """Hardware, versions, commit and date as a run writes them, and the command as it was typed."""
    module = sys.modules["__main__"].__spec__
    typed = ["-m", module.name] if module else sys.argv[:1]
    return {**rundir.environment(), "command": ["python", *typed, *sys.argv[1:]]}


def write(path: Path, results: dict[str, Any]) -> None:
    """Write a benchmark's `results` (JSON values) and the environment they were measured in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(), **results}, indent=1) + "\n", encoding="utf-8")


def median_spread(values: Sequence[float], digits: int = 1) -> str:
    """Median ± half the interquartile range, as in "12.3 ± 0.4"; of a single value, that value."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle} ± {(upper - lower) / 2:.{digits}f}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(map(str, cells))} |" for cells in (header, ["---"] * len(header), *rows)]

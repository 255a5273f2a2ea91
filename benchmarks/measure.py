"""Shared by the benchmarks: running commands, medians and spreads, tables, and result files with their environment.

A result file is benchmarks/results/<machine>/<benchmark>.json and holds the newest result only; git keeps the older
ones.
"""

import argparse
import contextlib
import json
import os
import re
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
import torch

from psys.errors import PsysError
from psys.run.environment import environment as run_environment

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_TERMINATE_SECONDS = 60.0  # for a command to end after SIGTERM
_AMD = {(23, False): "zen2", (25, False): "zen3", (25, True): "zen4", (26, True): "zen5"}  # by CPU family and AVX-512
_INSTRUCTIONS = {"amx_bf16": "amx", "avx512_bf16": "avx512-bf16", "avx512_f": "avx512", "avx2": "avx2"}  # widest first


class Running:
    """Commands that run side by side in the repository; leaving the context terminates the commands.

    The output of the commands goes to `log`; `variables` are added to the environment of the commands.
    """

    def __init__(self, commands: Iterable[Sequence[object]], log: Path, **variables: object) -> None:
        self._log = log
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        self._children: list[psutil.Popen] = []
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM leaves this context, as Ctrl-C does
        try:
            with log.open("wb") as output:
                for command in commands:
                    # A new session: only this process receives Ctrl-C, and it then ends its children in order.
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
        """The processes whose name starts with `name`."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith(name) and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def wait(self, done: Callable[[], bool], timeout_seconds: float, poll_seconds: float = 0.1) -> None:
        """Wait until `done()` is true.

        Raises PsysError with the last lines of the log if a command ends first, or after `timeout_seconds`.
        """
        deadline = time.monotonic() + timeout_seconds
        while not done():
            ended = [child for child in self._children if child.poll() is not None]
            if ended or time.monotonic() > deadline:
                what = f"ended with code {ended[0].returncode}" if ended else f"not ready after {timeout_seconds:.0f} s"
                command = " ".join((ended or self._children)[0].args[1:])
                said = " / ".join(self._log.read_text(errors="replace").strip().splitlines()[-3:])
                raise PsysError(f"{command}: {what}; last output: {said}")
            time.sleep(poll_seconds)

    def pause(self) -> None:
        """Suspend all processes until `resume`."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        """Continue all processes."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def stop(self) -> None:
        """Terminate the commands; after a minute, kill the commands and descendants that are still alive."""
        self.resume()
        family = list(self.processes())
        for child in self._children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        _, alive = psutil.wait_procs(family, timeout=_TERMINATE_SECONDS)
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
    """Prepare the sample at `path` if `path` does not exist. Raises PsysError if the sample cannot be prepared."""
    if not path.exists():
        command = [sys.executable, "-m", "psys", "prepare", "--source", "sample"]
        if subprocess.run([*command, "--stores", path.parent, "--name", path.name], cwd=ROOT).returncode:
            raise PsysError(f"could not prepare the sample at {path}")


def environment() -> dict[str, Any]:
    """The environment record of a run (see psys.run.environment), the microarchitecture, and the command as typed."""
    module = sys.modules["__main__"].__spec__
    typed = ["-m", module.name] if module else sys.argv[:1]
    command = ["python", *typed, *sys.argv[1:]]
    return {**run_environment(), "microarchitecture": _microarchitecture(), "command": command}


def _microarchitecture() -> str:
    """What tells processors of one name apart: the generation of an AMD processor, or the widest instruction set."""
    capabilities = torch.cpu.get_capabilities()
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    family = re.search(r"^vendor_id\s*: AuthenticAMD\n^cpu family\s*: (\d+)$", cpuinfo, re.MULTILINE)
    if family and (generation := _AMD.get((int(family[1]), bool(capabilities.get("avx512_f"))))):
        return generation
    return next((name for flag, name in _INSTRUCTIONS.items() if capabilities.get(flag)), "")


def machine(environment: dict[str, Any]) -> str:
    """Name of the folder of a machine's results: processor, microarchitecture and cores, as in "amd-epyc-zen5-2c"."""
    processor = re.sub(r"\((R|TM)\)|\b\d+-Core\b|\bProcessor\b|\bCPU\b|@.*", " ", environment["processor"], flags=re.I)
    parts = [processor or environment["machine"], environment["microarchitecture"], f"{environment['cores']}c"]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def results_path(benchmark: str) -> Path:
    """The result file of a benchmark on this machine."""
    return RESULTS / machine(environment()) / f"{benchmark}.json"


def write(path: Path, results: dict[str, Any], part: str | None = None) -> None:
    """Write the `results` of a benchmark (JSON values) and the environment in which the results were measured.

    With `part` (a model, an arm and seed, a format), only this part of the file is replaced: {"parts": {part: ...}}.
    """
    content: dict[str, Any] = {"environment": environment(), **results}
    if part is not None:
        content = {"parts": {**read_parts(path), part: content}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_parts(path: Path) -> dict[str, dict[str, Any]]:
    """The parts of a result file by name; no parts if there is no such file."""
    parts: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}
    return parts


def median_spread(values: Sequence[float], digits: int = 1) -> str:
    """Median ± half the interquartile range, as in "12.3 ± 0.4"; only the value if there is just one."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle} ± {(upper - lower) / 2:.{digits}f}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(map(str, cells))} |" for cells in (header, ["---"] * len(header), *rows)]

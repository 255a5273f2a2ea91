"""The evaluation of snapshots while a run trains, by a process of its own: training never waits for it."""

import contextlib
import json
import os
import subprocess
import sys
from typing import IO

from psys.errors import reason_of, say
from psys.ps.messages import Evaluated
from psys.run.directory import RunDirectory

_READ_BYTES = 1 << 16


class SnapshotEvaluation:
    """Starts the process with the first snapshot, and takes in its results. Used by one thread; no call blocks.

    `epochs` are those trained before. If the process fails, the user is told once and the run goes on: evaluate_run
    evaluates what is missing. Raises nothing.
    """

    def __init__(self, run: RunDirectory, epochs: float = 0.0) -> None:
        config = run.config()
        self._run, self._every, self._epochs = run, config.evaluate_every, epochs
        self._enabled = config.evaluates_while_training
        self._pace = "idle" if config.evaluate_every is None and config.early_stopping is None else "full"
        self._process: subprocess.Popen[bytes] | None = None
        self._submitted: dict[int, float] = {}  # epochs by version
        self._received = b""

    def submit(self, version: int, epochs: float) -> None:
        """A snapshot was written: it is evaluated if it is due."""
        before, self._epochs = self._epochs, epochs
        if not self._enabled or (self._every and int(epochs / self._every) == int(before / self._every)):
            return
        try:
            self._process = self._process or self._start()
            self._submitted[version] = epochs
            os.write(_pipe(self._process.stdin), b"%d\n" % version)
        except OSError as error:
            self._give_up(reason_of(error))

    def finished(self) -> list[Evaluated]:
        """The evaluations that have come in since the last call."""
        if self._process is None:
            return []
        ended = self._process.poll()
        with contextlib.suppress(BlockingIOError):
            while data := os.read(_pipe(self._process.stdout), _READ_BYTES):
                self._received += data
        *lines, self._received = self._received.split(b"\n")
        evaluated = []
        for line in lines:
            found = {name: json.loads(line)[name] for name in ("version", "loss", "accuracy", "images")}
            evaluated.append(Evaluated(epochs=self._submitted[found["version"]], **found))
        if ended is not None:
            self._give_up(f"its process ended with exit code {ended}" if ended else "")
        return evaluated

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._enabled = False
        if self._process:
            with self._process as process:
                process.kill()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "psys.run.evaluate_while_training", str(self._run.path), self._pace]
        path = os.pathsep.join(each or os.getcwd() for each in sys.path)
        with (self._run.logs / "evaluation.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the run, which ends this process
            )
        for pipe in (process.stdin, process.stdout):
            os.set_blocking(_pipe(pipe), False)
        return process

    def _give_up(self, reason: str) -> None:
        if reason:
            log = self._run.logs / "evaluation.log"
            say(f"no evaluation while training any more, the run goes on: {reason} (see {log})")
        self.close()


def _pipe(file: IO[bytes] | None) -> int:
    assert file is not None
    return file.fileno()

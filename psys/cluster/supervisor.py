"""Starts the server and the workers of a local run as processes, watches over them and leaves none behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from psys.cluster.rundir import RunDirectory
from psys.errors import PsysError

_POLL_SECONDS = 0.2
_SETTLE_SECONDS = 20.0  # for a server to save and for workers to go, once the run is over


class Supervisor:
    """One server and `workers` workers that share this machine's cores. SIGINT and SIGTERM end the run gently."""

    def __init__(self, run: RunDirectory, listener: socket.socket, workers: int, threads: int) -> None:
        self._run = run
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        host, port = listener.getsockname()[:2]
        descriptor = str(listener.fileno())
        self._server = self._start(
            ["serve", str(run.path), "--fd", descriptor, "--workers", str(workers)], pass_fds=[listener.fileno()]
        )
        listener.close()
        join = ["work", "localhost" if host in ("0.0.0.0", "::") else host, str(port), "--threads", str(threads)]
        self._failed = 0
        self._workers = {number: self._start(join, log=f"worker{number}.log") for number in range(workers)}

    def wait(self) -> bool:
        """Until the run has ended. Returns whether it was interrupted; raises PsysError if it failed."""
        interrupted: list[int] = []

        def interrupt(number: int, frame: FrameType | None) -> None:
            interrupted.append(number)
            self._server.terminate()

        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self._server.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._server.wait(_POLL_SECONDS)
                self._look_after_workers()
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._failed and not self._workers:
            raise PsysError(f"every worker failed, the run ended early; what was trained is in {self._run.path}")
        if self._server.returncode and not interrupted:
            code = self._server.returncode
            raise PsysError(f"the server ended with code {code}; what was saved is in {self._run.path}")
        return bool(interrupted)

    def _look_after_workers(self) -> None:
        for number, process in list(self._workers.items()):
            if not process.poll():
                continue
            del self._workers[number]
            self._failed += 1
            log = self._run.logs / f"worker{number}.log"
            last_words = log.read_text(errors="replace").strip().splitlines()[-1:]
            print(f"psys: a worker ended with code {process.returncode}:", *last_words, f"(see {log})", file=sys.stderr)
            if not self._workers:
                self._server.terminate()

    def _end(self) -> None:
        self._server.terminate()
        for process in [self._server, *self._workers.values()]:
            try:
                process.wait(_SETTLE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(
        self, arguments: Sequence[str], log: str | None = None, pass_fds: Sequence[int] = ()
    ) -> subprocess.Popen[bytes]:
        # A session of its own keeps the terminal's Ctrl-C from a child that must be ended in order.
        command = [sys.executable, "-m", "psys.cluster.node", *arguments]
        output = (self._run.logs / log).open("wb") if log else None
        try:
            return subprocess.Popen(
                command, env=self._environment, stdout=output, stderr=output, pass_fds=pass_fds, start_new_session=True
            )
        finally:
            if output:
                output.close()

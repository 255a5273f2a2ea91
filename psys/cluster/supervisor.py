"""Starts the servers and the workers of a local run as processes, brings back those that die, leaves none behind."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType

from psys.cluster.processes import dismiss_children, start_child
from psys.cluster.roles import (
    LOST,
    STOP,
    STOP_WHEN_ALONE,
    STOPPED_EARLY,
    USER_ERROR,
    serve_as_child,
    serve_shard_as_child,
    work_as_child,
)
from psys.errors import PsysError
from psys.run.directory import RunDirectory

_POLL_SECONDS = 0.2
_SETTLE_SECONDS = 10.0  # for workers to go, once the server has
_SETTLED_SECONDS = 10.0  # who lived as long did not fail in starting
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 4.0
# Deaths in a row, none of which lived for _SETTLED_SECONDS: by itself, and by a signal, which is somebody else's doing.
_OWN_DEATHS, _KILLS = 3, 100


class _Patience:
    """When a process that died is started again: at once, then after ever longer pauses, then never."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._own_deaths = self._kills = 0

    def started(self) -> None:
        self._started = time.monotonic()

    def pause_after(self, code: int) -> float | None:
        """Seconds until the process that ended with `code` is to be started again; None: never."""
        if time.monotonic() - self._started > _SETTLED_SECONDS:
            self._own_deaths = self._kills = 0
        deaths = self._own_deaths + self._kills
        self._own_deaths += code > 0
        self._kills += code < 0
        if self._own_deaths > _OWN_DEATHS or self._kills > _KILLS:
            return None
        return min(_FIRST_PAUSE_SECONDS * 2 ** (deaths - 1), _LONGEST_PAUSE_SECONDS) if deaths else 0.0


class _Worker:
    """One place for a worker, and the process that fills it now."""

    def __init__(self, number: int, log: Path, start: Callable[[], ForkServerProcess]) -> None:
        self.number, self.log = number, log
        self._start = start
        self._patience = _Patience()
        self._due: float | None = None
        self.process = start()

    def look_after(self) -> bool:
        """Start it again when that is due; whether there is hope for this place."""
        if self._due is not None:
            if time.monotonic() >= self._due:
                self._due = None
                self._patience.started()
                self.process = self._start()
            return True
        code = self.process.exitcode
        if not code:  # it works, or it was told to leave, or the run is over
            return code is None
        pause = self._patience.pause_after(code)
        last_words = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        what = f"{_ended(code)}: {' '.join(last_words)} (see {self.log})"
        if pause is None:
            _say(f"worker process {self.number} {what}; it is given up after so many times in a row")
            return False
        _say(f"worker process {self.number} {what}; it is started again" + (f" in {pause:g} s" if pause else ""))
        self._due = time.monotonic() + pause
        return True


class Supervisor:
    """`servers` and `workers` that share this machine's cores. SIGINT and SIGTERM end the run gently."""

    def __init__(
        self, run: RunDirectory, listener: socket.socket, servers: int, workers: int, threads: int, token: str
    ) -> None:
        self._run, self._listener, self._count, self._awaited = run, listener, servers, workers
        host, port = listener.getsockname()[:2]
        self._way = ("localhost" if host in ("0.0.0.0", "::") else host, port)
        self._threads, self._token = threads, token
        self._patience = _Patience()
        self._start_servers()
        self._workers = [self._worker(number) for number in range(workers)]

    def wait(self) -> bool:
        """Until the run has ended. Returns whether every batch was applied (False: it was interrupted).

        Servers that die are started again, all of them, from the last checkpoint. Raises PsysError if that does not
        help, or if all workers failed; exits if a server found, and said, something that the user must mend.
        """
        interrupted: list[int] = []

        def interrupt(number: int, frame: FrameType | None) -> None:
            interrupted.append(number)
            _signal(self._servers[0], STOP)

        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        code = None
        try:
            while code is None:
                self._servers[0].join(_POLL_SECONDS)
                self._look_after_workers()
                code = self._look_after_servers(interrupted)
        finally:
            self._end(in_order=code == 0)
            for number, handler in before.items():
                signal.signal(number, handler)
        if code == 0 or interrupted:
            return code == 0
        saved = f"what was saved is in {self._run.path}"
        if code == STOPPED_EARLY:
            raise PsysError(f"no worker is left, the run ended early; {saved}")
        if code == USER_ERROR:  # it has said what
            sys.exit(USER_ERROR)
        raise PsysError(f"a server {_ended(code)} and did not come back; {saved}, --resume {self._run.path} goes on")

    def _start_servers(self) -> None:
        first = start_child("psys-server0", serve_as_child, self._run, self._listener, self._awaited, self._token)
        others = [
            start_child(f"psys-server{number}", serve_shard_as_child, number, *self._way, self._token)
            for number in range(1, self._count)
        ]
        self._servers = [first, *others]
        self._patience.started()

    def _worker(self, number: int) -> _Worker:
        log = self._run.logs / f"worker{number}.log"
        log.touch()
        name = f"psys-worker{number}"
        arguments = (*self._way, self._threads, self._token)
        return _Worker(number, log, lambda: start_child(name, work_as_child, number, *arguments, log=log))

    def _look_after_servers(self, interrupted: list[int]) -> int | None:
        """The exit code that ends the run, None while it goes on."""
        codes = [server.exitcode for server in self._servers]
        if codes[0] in (0, STOPPED_EARLY):
            return codes[0]
        # The others end in order when server 0 tells them so. Who was killed is the cause, who lost another is not.
        cause = sorted((code == LOST, code > 0, number, code) for number, code in enumerate(codes) if code)
        if not cause:
            return None
        *_, number, code = cause[0]
        for server in self._servers:  # a part of the parameters is gone: all go back to one version
            server.kill()
            server.join()
        pause = None if code == USER_ERROR or interrupted else self._patience.pause_after(code)
        if pause is None:
            return code
        _say(f"server {number} {_ended(code)}: all servers are started again from the last checkpoint")
        time.sleep(pause)
        if interrupted:
            return code
        self._start_servers()
        return None

    def _look_after_workers(self) -> None:
        if not self._workers:
            return
        self._workers = [worker for worker in self._workers if worker.look_after()]
        if not self._workers:
            _signal(self._servers[0], STOP_WHEN_ALONE)  # others may have joined from elsewhere

    def _end(self, in_order: bool) -> None:
        self._listener.close()
        if self._servers[0].exitcode is None:  # only if this process is failing itself
            self._servers[0].kill()
        deadline = time.monotonic() + _SETTLE_SECONDS
        for process in (*(worker.process for worker in self._workers), *self._servers):
            if not in_order:
                process.terminate()  # it may still be looking for the server that is gone
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()
        dismiss_children()


def _ended(code: int) -> str:
    if code > 0:
        return f"ended with code {code}"
    return f"was killed by {signal.Signals(-code).name}"


def _say(text: str) -> None:
    print(f"psys: {text}", file=sys.stderr, flush=True)


def _signal(process: ForkServerProcess, number: int) -> None:
    if process.exitcode is None and process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

"""Starts the servers and workers of a run as processes, restarts those that die, and leaves none behind."""

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple, Protocol

from psys.cluster.child import STOP, STOP_WITHOUT_WORKERS, ExitCode, run_server_0, run_shard_server, run_worker
from psys.cluster.processes import forkserver_running, start_child
from psys.cluster.restarts import RestartPolicy
from psys.errors import ERROR, TOO_MANY_OPEN_FILES, PsysError, reason_of, say
from psys.run.config import RestartConfig
from psys.run.directory import RunDirectory
from psys.transport.join_messages import Role

_POLL_SECONDS = 0.2
_END_SECONDS = 10.0  # for workers and other servers to end after server 0


class RunProcess(Protocol):
    """A process of the run, on this machine or on another one; as multiprocessing.Process."""

    @property
    def exitcode(self) -> int | None: ...

    def join(self, timeout: float | None = None) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


StartElsewhere = Callable[[Role, int, Path], RunProcess]
"""Starts the worker, or the server after server 0, of that number on another machine; the log gets its output"""


class _ServerProcess(NamedTuple):
    process: RunProcess
    message: Callable[[], str]
    """of the PsysError, if the process ended with ExitCode.USER_ERROR"""


class _WorkerProcess:
    """A worker's process, which is restarted when it dies."""

    def __init__(self, number: int, log: Path, restarts: RestartConfig, start: Callable[[], RunProcess]) -> None:
        self.number, self.log = number, log
        self._start, self._policy = start, RestartPolicy(restarts)
        self._restart_at: float | None = None
        self._start_now()

    def check(self) -> bool:
        """Restart the process if that is due. Returns False if it has ended for good."""
        if self._restart_at is not None:
            if time.monotonic() >= self._restart_at:
                self._start_now()
            return True
        code = self.process.exitcode
        if not code:  # it runs; or it was told to leave, or the run is over
            return code is None
        pause = self._policy.pause_after(code, time.monotonic() - self._started)
        why = _reason_in(self.log)
        what = f"worker process {self.number} {_how_it_ended(code)}{why and ': '}{why} (see {self.log})"
        if pause is None:
            say(f"{what}; it died too often in a row and is not restarted")
            return False
        say(f"{what}; it is restarted" + (f" in {pause:g} s" if pause else ""))
        self._restart_at = time.monotonic() + pause
        return True

    def _start_now(self) -> None:
        self._restart_at, self._started = None, time.monotonic()
        self.process = self._start()


class Supervisor:
    """Runs the servers and workers of a run. The servers are restarted together, from the last checkpoint."""

    def __init__(
        self,
        run: RunDirectory,
        listener: socket.socket,
        threads: int,
        token: str,
        elsewhere: StartElsewhere | None = None,
    ) -> None:
        """`threads`: of each worker. Server 0 accepts workers and servers at `listener`, if they know the token.

        `elsewhere`: starts all processes but server 0, if they are not to run on this machine.
        """
        config = run.config()
        assert config.workers is not None
        self._run, self._listener = run, listener
        self._local_servers, self._awaited = config.servers - config.remote_servers, config.workers
        self._local_workers = config.workers - config.remote_workers
        host, port = listener.getsockname()[:2]
        self._address = ("localhost" if host in ("0.0.0.0", "::") else host, port)
        self._threads, self._token, self._elsewhere = threads, token, elsewhere
        self._restarts = config.restarts
        self._policy = RestartPolicy(config.restarts)
        self._message = ""
        self._servers: list[_ServerProcess] = []
        self._workers: list[_WorkerProcess] = []

    def supervise(self, stopped: Callable[[], bool]) -> bool:
        """Start all processes and wait until the run has ended, or been saved and ended because it was `stopped()`.

        Returns whether every batch was applied. Raises PsysError if a server found something that the user must mend,
        if a server died too often, or if no worker is left.
        """
        code = None
        with forkserver_running():
            try:
                self._start_servers()
                self._workers = [self._worker(number) for number in range(self._local_workers)]
                told = False
                while code is None:
                    self._servers[0].process.join(_POLL_SECONDS)
                    if stopped() and not told:
                        told = True
                        _signal(self._servers[0].process, STOP)
                    self._check_workers()
                    code = self._check_servers(stopped)
            finally:
                self._end(in_order=code == 0)
        if code == 0 or (stopped() and code != ExitCode.USER_ERROR):
            return code == 0
        saved = f"what was saved is in {self._run.path}"
        if code == ExitCode.INCOMPLETE:
            raise PsysError(f"no worker is left, the run ended early; {saved}")
        if code == ExitCode.USER_ERROR:
            raise PsysError(self._message)
        raise PsysError(
            f"a server {_how_it_ended(code)} and is not restarted; {saved}, --resume {self._run.path} goes on"
        )

    def _start_servers(self) -> None:
        self._started = time.monotonic()
        self._servers = [
            _start_server("psys-server0", run_server_0, self._run, self._listener, self._awaited, self._token),
            *(self._shard_server(number) for number in range(1, self._local_servers)),
        ]

    def _shard_server(self, number: int) -> _ServerProcess:
        if self._elsewhere:
            log = self._log(f"server{number}")
            return _ServerProcess(self._elsewhere("server", number, log), lambda: _reason_in(log).removeprefix(ERROR))
        return _start_server(f"psys-server{number}", run_shard_server, number, *self._address, self._token)

    def _worker(self, number: int) -> _WorkerProcess:
        log = self._log(f"worker{number}")

        def start() -> RunProcess:
            if self._elsewhere:
                return self._elsewhere("worker", number, log)
            arguments = (number, *self._address, self._threads, self._token)
            return start_child(f"psys-worker{number}", run_worker, *arguments, log=log)

        return _WorkerProcess(number, log, self._restarts, start)

    def _log(self, name: str) -> Path:
        log = self._run.logs / f"{name}.log"
        log.touch()
        return log

    def _check_servers(self, stopped: Callable[[], bool]) -> int | None:
        """Restart the servers if one has died. Returns the exit code that ends the run, None while it goes on."""
        codes = [server.process.exitcode for server in self._servers]
        if codes[0] in (0, ExitCode.INCOMPLETE):
            return codes[0]
        # The cause is a server that was killed, or else one that failed, but not one that lost another server.
        # The other servers end with code 0 when server 0 tells them to.
        died = [(number, code) for number, code in enumerate(codes) if code]
        causes = sorted((code == ExitCode.SERVER_LOST, code > 0, number, code) for number, code in died)
        if not causes:
            return None
        *_, number, code = causes[0]
        for server in self._servers:  # their slices must go back to one version together
            server.process.kill()
            server.process.join()
        if code == ExitCode.USER_ERROR:
            self._message = self._servers[number].message()
            return code
        pause = None if stopped() else self._policy.pause_after(code, time.monotonic() - self._started)
        if pause is None:
            return code
        say(f"server {number} {_how_it_ended(code)}: all servers are restarted from the last checkpoint")
        time.sleep(pause)
        if stopped():
            return code
        self._start_servers()
        return None

    def _check_workers(self) -> None:
        if not self._workers:
            return
        self._workers = [worker for worker in self._workers if worker.check()]
        if not self._workers:  # workers of other machines may go on
            _signal(self._servers[0].process, STOP_WITHOUT_WORKERS)

    def _end(self, in_order: bool) -> None:
        self._listener.close()
        if self._servers and self._servers[0].process.exitcode is None:  # only if this process itself fails
            self._servers[0].process.kill()
        deadline = time.monotonic() + _END_SECONDS
        for process in (*(w.process for w in self._workers), *(server.process for server in self._servers)):
            if not in_order:
                process.terminate()  # it may still be looking for server 0
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()


def _start_server(name: str, function: Callable[..., None], *arguments: object) -> _ServerProcess:
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def message() -> str:
        with contextlib.suppress(EOFError):
            return receiver.recv_bytes().decode()
        return f"{name} ended without a message"

    with sender:
        return _ServerProcess(start_child(name, function, *arguments, sender), message)


def _reason_in(log: Path) -> str:
    """Why a worker died, by the last line of its log; "" if the log does not say it in words for a user."""
    try:
        last = "".join(log.read_text(errors="replace").strip().splitlines()[-1:]).strip()
    except OSError as error:
        return reason_of(error)
    if "too many open files" in last:
        return TOO_MANY_OPEN_FILES
    return "" if last.startswith("what(): ") else last  # of an exception of C++


def _how_it_ended(code: int) -> str:
    return f"ended with code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"


def _signal(process: RunProcess, number: int) -> None:
    """Send a signal to a process of this machine."""
    assert isinstance(process, BaseProcess)
    if process.exitcode is None and process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

"""Starts the servers and the workers of a local run as processes, watches over them and leaves none behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from psys.cluster.node import STOP, STOP_WHEN_ALONE, STOPPED_EARLY
from psys.cluster.rundir import RunDirectory
from psys.errors import PsysError

_POLL_SECONDS = 0.2
_SETTLE_SECONDS = 10.0  # for workers to go, once the server has


class Supervisor:
    """`servers` and `workers` that share this machine's cores. SIGINT and SIGTERM end the run gently."""

    def __init__(self, run: RunDirectory, listener: socket.socket, servers: int, workers: int, threads: int) -> None:
        self._run = run
        host, port = listener.getsockname()[:2]
        reachable = "localhost" if host in ("0.0.0.0", "::") else host
        serve = ["serve", run.path, "--fd", listener.fileno(), "--workers", workers, "--supervisor", os.getpid()]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._server = _start(serve, environment, pass_fds=[listener.fileno()])
        listener.close()
        self._shards: list[subprocess.Popen[bytes]] = []
        for number in range(1, servers):
            shard = ["shard", number, reachable, port, "--supervisor", os.getpid()]
            self._shards.append(_start(shard, environment))
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        for number in range(workers):
            work = ["work", reachable, port, "--threads", threads]
            environment = {**environment, "LOCAL_RANK": str(number)}
            with (run.logs / f"worker{number}.log").open("wb") as log:
                self._workers[number] = _start(work, environment, stdout=log, stderr=log)

    def wait(self) -> bool:
        """Until the run has ended. Returns whether every batch was applied (False: it was interrupted).

        Raises PsysError if the server failed, or all workers did.
        """
        interrupted: list[int] = []

        def interrupt(number: int, frame: FrameType | None) -> None:
            interrupted.append(number)
            self._server.send_signal(STOP)

        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        killed = False
        try:
            while self._server.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._server.wait(_POLL_SECONDS)
                self._look_after_workers()
                if self._dead_shard() and self._server.poll() is None:
                    self._server.kill()  # a part of the parameters is gone
                    killed = True
            # Looked up before this process ends the others. Those whom a killed server 0 takes along are not the cause.
            dead = self._dead_shard() if killed or self._server.returncode > 0 else None
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)
        code = self._server.returncode
        if code == 0 or interrupted:
            return code == 0
        if dead:
            raise PsysError(f"server {dead[0]} ended with code {dead[1]}; what was saved is in {self._run.path}")
        if code == STOPPED_EARLY:
            raise PsysError(f"every worker failed, the run ended early; what was trained is in {self._run.path}")
        raise PsysError(f"the server ended with code {code}; what was saved is in {self._run.path}")

    def _dead_shard(self) -> tuple[int, int] | None:
        """Number and exit code of a server, not the first, that failed."""
        return next(((number, shard.returncode) for number, shard in enumerate(self._shards, 1) if shard.poll()), None)

    def _look_after_workers(self) -> None:
        for number, process in list(self._workers.items()):
            if not process.poll():
                continue
            del self._workers[number]
            log = self._run.logs / f"worker{number}.log"
            last_words = log.read_text(errors="replace").strip().splitlines()[-1:]
            print(f"psys: a worker ended with code {process.returncode}:", *last_words, f"(see {log})", file=sys.stderr)
            if not self._workers:
                self._server.send_signal(STOP_WHEN_ALONE)  # others may have joined from elsewhere

    def _end(self) -> None:
        if self._server.poll() is None:  # only if this process is failing itself
            self._server.kill()
        deadline = time.monotonic() + _SETTLE_SECONDS
        for process in (*self._workers.values(), *self._shards):
            if self._server.wait():
                process.terminate()  # it may still be looking for the server that is gone
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(arguments: Sequence[object], environment: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "psys.cluster.node", *map(str, arguments)]
    # A session of its own keeps the terminal's Ctrl-C from a child that must be ended in order.
    return subprocess.Popen(command, env=environment, start_new_session=True, **options)

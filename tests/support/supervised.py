"""Servers and workers for tests of the supervisor, which passes them `token`: here a folder to leave a note in."""

import signal
import socket
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from psys.cluster.child import STOP, STOP_WITHOUT_WORKERS, ExitCode
from psys.run.directory import RunDirectory


def server_that_waits(run: RunDirectory, listener: socket.socket, awaited: int, token: str, errors: Connection) -> None:
    """Ends, not having applied every batch, when the supervisor tells it to."""
    stops = {STOP, STOP_WITHOUT_WORKERS}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    (Path(token) / "server waits").touch()
    (Path(token) / f"server got {signal.sigwait(stops)}").touch()
    sys.exit(ExitCode.INCOMPLETE)


def server_that_fails(run: RunDirectory, listener: socket.socket, awaited: int, token: str, errors: Connection) -> None:
    with (Path(token) / "servers").open("a") as file:
        file.write("started\n")
    sys.exit(1)


def server_that_ends(run: RunDirectory, listener: socket.socket, awaited: int, token: str, errors: Connection) -> None:
    """Every batch is applied."""


def worker_that_waits(place: int, host: str, port: int, threads: int, token: str) -> None:
    time.sleep(600)


def worker_that_fails(place: int, host: str, port: int, threads: int, token: str) -> None:
    """Once there is a server to be told of it."""
    while not (Path(token) / "server waits").exists():
        time.sleep(0.02)
    print("the last line of its log")
    sys.exit(1)


def worker_that_ends(place: int, host: str, port: int, threads: int, token: str) -> None:
    """The run is over."""

"""What the child processes of a local run execute: server 0, another server, or a worker."""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from enum import IntEnum
from multiprocessing.connection import Connection

# Before torch is imported: its RPC logs a warning for every worker that leaves.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from psys.cluster.processes import leave_signals, parent_ended, terminate_when_parent_ends
from psys.cluster.roles import serve, serve_shard
from psys.cluster.worker import LeaveRequested, leave_at_signals, work
from psys.errors import LostServerError, PsysError, exit_with_message, reason_of, say
from psys.run.directory import RunDirectory
from psys.run.status import Status

STOP = signal.SIGTERM
"""to server 0, as SIGHUP: apply what is being computed, save and end"""
STOP_WITHOUT_WORKERS = signal.SIGUSR1
"""to server 0: do so as soon as the run has no worker"""


class ExitCode(IntEnum):
    """Exit codes of a server's process, besides 0 (every batch is applied) and those of a crash."""

    USER_ERROR = 2
    """a PsysError or OSError, whose message was sent to the supervisor"""
    INCOMPLETE = 3
    """stopped and saved before the last batch"""
    SERVER_LOST = 4
    """another server has ended"""


def run_server_0(run: RunDirectory, listener: socket.socket, awaited: int, token: str, errors: Connection) -> None:
    """Be server 0 of the run. `awaited` workers start together."""
    received: list[int] = []
    stop = leave_signals()
    for number in (*stop, STOP_WITHOUT_WORKERS):
        signal.signal(number, lambda number, frame: received.append(number))

    def stopped(status: Status) -> bool:
        # Nobody else would end this process once its supervisor has ended.
        told = not set(stop).isdisjoint(received)
        return parent_ended() or told or (STOP_WITHOUT_WORKERS in received and status.workers == 0)

    with _exit_codes(errors):
        end = serve(run, listener, awaited, stopped, token)
        sys.exit(0 if end.complete else ExitCode.INCOMPLETE)


def run_shard_server(number: int, host: str, port: int, token: str, errors: Connection) -> None:
    """Be server `number` > 0 of the run whose server 0 is at host:port."""
    with _exit_codes(errors):
        serve_shard(host, port, token, number, stopped=parent_ended)


def run_worker(place: int, host: str, port: int, threads: int, token: str) -> None:
    """Be a worker of the run whose server 0 is at host:port; `place` numbers the workers of this machine from 0."""
    os.environ["LOCAL_RANK"] = str(place)
    with exit_with_message(), contextlib.suppress(LeaveRequested):
        leave_at_signals()
        terminate_when_parent_ends()
        work(host, port, threads, token)


@contextlib.contextmanager
def _exit_codes(errors: Connection) -> Iterator[None]:
    """End with the ExitCode of an error, and send the supervisor the message of an error that the user must mend."""
    try:
        yield
    except LostServerError as error:
        say(str(error))
        sys.exit(ExitCode.SERVER_LOST)
    except (PsysError, OSError) as error:
        errors.send_bytes(reason_of(error).encode())
        sys.exit(ExitCode.USER_ERROR)

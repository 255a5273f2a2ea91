"""A server or a worker of a run in a process of its own, as an actor on a node of a Ray cluster looks after it.

It imports neither Ray nor torch: the actor is there at once, and small.
"""

import contextlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from psys.cluster.processes import kill_when_parent_ends
from psys.data.store_copy import find_store, unpacked_store
from psys.errors import ERROR, PsysError

_POLL_SECONDS = 1.0
_USER_ERROR = 2  # exit code of a PsysError


class Part(NamedTuple):
    """What a process of a run is, and where the run is."""

    role: Literal["worker", "server"]
    number: int
    host: str
    port: int
    token: str
    threads: int


class Report(NamedTuple):
    """What the process has done since the last report."""

    exitcode: int | None
    output: bytes


class NodeProcess:
    """The actor. Its process ends with it."""

    def __init__(self) -> None:
        self._output = os.memfd_create("output")
        self._read = 0

    def start(self, part: Part, store: Path, content: str, packed: bytes | None) -> Report | None:
        """Start the process; returns None instead, for a worker, if the node lacks the store and needs it `packed`.

        store: where the driver has its prepared store, with that `content` hash.
        """
        found = None
        if part.role == "worker":
            try:
                found = find_store(store, content)
                if found is None and packed is None:
                    return None
                found = found or unpacked_store(store, content, packed or b"")
            except PsysError as error:
                return Report(_USER_ERROR, f"{ERROR}{error}\n".encode())
        role, number, host, port, token, threads = part
        self._process = subprocess.Popen(
            [sys.executable, "-m", "psys.cluster.node", *map(str, (role, number, host, port, threads, found or ""))],
            env={**os.environ, "PSYS_TOKEN": token},  # other users of the node can read arguments
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            preexec_fn=partial(kill_when_parent_ends, os.getpid()),
        )
        return Report(None, b"")

    def poll(self) -> Report:
        """Wait up to a second for the end of the process."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_POLL_SECONDS)
        code = self._process.poll()
        output = os.pread(self._output, os.fstat(self._output).st_size - self._read, self._read)
        self._read += len(output)
        return Report(code, output)

    def terminate(self) -> None:
        """Tell the process to leave the run."""
        self._process.terminate()

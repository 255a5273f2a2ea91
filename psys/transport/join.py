"""The client's side of the rendezvous: a worker or a server joins a run by the address of its rendezvous server."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from psys.config import validate
from psys.errors import PsysError, reason_of, say
from psys.run.config import RunConfig
from psys.transport.address import check_address, enable_keepalive
from psys.transport.join_messages import (
    LINE_BYTES,
    JoinRequest,
    JoinResponse,
    Role,
    format_line,
    parse_line,
    proof_of,
)

JOIN_SECONDS = RunConfig().patience
"""How long a worker or a server that joins waits by default for the run to answer: it may be started first."""

_RETRY_SECONDS = 0.25
_CONNECT_SECONDS = 2.0  # an attempt started in a network partition would outlast it: the kernel's pauses grow
_HEARTBEATS_PER_TIMEOUT = 5
_QUIET_SECONDS = 2.0  # until the user is told that this process waits


class NoServerError(PsysError):
    """No psys server answered in time; `reason`: why the last attempt failed."""

    def __init__(self, where: str, seconds: float, reason: str) -> None:
        super().__init__(
            f"no server at {where} within {seconds:g} s ({reason}): start the run first, and give the address it prints"
        )
        self.reason = reason


class JoinError(PsysError):
    """A psys server answered the process, and did not admit it."""


class RendezvousConnection:
    """The open connection of a process that joined a run.

    `response`: what the server answered. `address`: of this host on the network to the server. `lost` is set once the
    server is gone; it is watched from `start_heartbeat` or `watch` on.
    """

    def __init__(self, connection: socket.socket, lines: BinaryIO, response: JoinResponse) -> None:
        self.response = response
        self.address: str = connection.getsockname()[0]
        self.lost = threading.Event()
        self._connection, self._lines = connection, lines
        self._closed = threading.Event()

    def config(self) -> RunConfig:
        """The settings of the run. Raises PsysError if the run's version of psys has other settings."""
        return validate(RunConfig, parse_line(f"{self.response.settings}\n".encode()), "the run's settings")

    def send(self, **message: Any) -> None:
        """Send one message (see join_messages). On a broken connection the message is dropped."""
        with contextlib.suppress(OSError):
            self._connection.sendall(format_line(message))

    def start_heartbeat(self) -> None:
        """Send heartbeats in a thread. `lost` is set when an echo is missing for `heartbeat_timeout`."""
        self._start(self._send_heartbeats, "heartbeat")

    def watch(self) -> None:
        """Set `lost` when the connection ends, for a server, which sends no heartbeats."""
        self._start(self._read_to_the_end, "rendezvous")

    def close(self) -> None:
        """End the connection."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _start(self, loop: Callable[[], None], name: str) -> None:
        def run() -> None:
            with contextlib.suppress(OSError, ValueError):
                loop()
            self.lost.set()

        threading.Thread(target=run, name=name, daemon=True).start()

    def _send_heartbeats(self) -> None:
        timeout = self.response.heartbeat_timeout
        self._connection.settimeout(timeout)
        while not self._closed.is_set():
            self._connection.sendall(format_line({"heartbeat": True}))
            if not self._lines.readline(LINE_BYTES):
                break
            self._closed.wait(timeout / _HEARTBEATS_PER_TIMEOUT)

    def _read_to_the_end(self) -> None:
        self._connection.settimeout(None)
        enable_keepalive(self._connection, self.response.heartbeat_timeout)
        while self._lines.readline(LINE_BYTES):
            pass


def join(
    host: str,
    port: int,
    token: str,
    role: Role,
    timeout_seconds: float,
    number: int | None = None,
    incarnation: str = "",
) -> RendezvousConnection:
    """Join the run at host:port. Waits until the run answers; a worker's answer comes once all servers have joined.

    The host's name need not be in DNS yet. The user is told of a wait that takes longer than 2 s.
    `number`: of a server that the run started itself, or of a worker that reconnects to the server of `incarnation`.
    Raises JoinError if the server refuses the process, NoServerError if none answers within `timeout_seconds`, and
    PsysError if something else answers or host:port is no address.
    """
    check_address(host, port)
    where = f"{host}:{port}"
    began, told = time.monotonic(), False
    fields = {"role": role, "number": number, "incarnation": incarnation}
    while True:
        try:
            return _attempt(host, port, token, fields, began + timeout_seconds)
        except (OSError, EOFError) as error:
            reason, waited = reason_of(error), time.monotonic() - began
            if waited > timeout_seconds:
                raise NoServerError(where, timeout_seconds, reason) from None
            if waited > _QUIET_SECONDS and not told:
                say(f"waiting for {where}: {reason}, for up to {timeout_seconds:g} s")
                told = True
            time.sleep(_RETRY_SECONDS)


def _attempt(host: str, port: int, token: str, fields: dict[str, Any], deadline: float) -> RendezvousConnection:
    """Raises JoinError, PsysError if no psys server answers, OSError and EOFError if nothing answers."""
    connection = socket.create_connection((host, port), timeout=min(_seconds_to(deadline), _CONNECT_SECONDS))
    try:
        connection.settimeout(_seconds_to(deadline))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = connection.makefile("rb")
        challenge = parse_line(lines.readline(LINE_BYTES)).get("psys")
        if not isinstance(challenge, str):
            raise PsysError("it sent no challenge")
        request = JoinRequest(proof=proof_of(token, challenge), **fields)
        connection.sendall(format_line(request.model_dump(mode="json")))
        connection.settimeout(_seconds_to(deadline))
        try:
            answer = parse_line(lines.readline(LINE_BYTES))
        except TimeoutError:
            raise JoinError(f"the run at {host}:{port} does not answer: are all its servers running?") from None
        if "refused" in answer:
            raise JoinError(f"the run at {host}:{port} refused this {request.role}: {answer['refused']}")
        return RendezvousConnection(connection, lines, validate(JoinResponse, answer, where="the answer"))
    except BaseException as error:
        connection.close()
        if isinstance(error, PsysError) and not isinstance(error, JoinError):
            raise PsysError(f"what listens at {host}:{port} is no psys server: {error}") from None
        raise


def _seconds_to(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())

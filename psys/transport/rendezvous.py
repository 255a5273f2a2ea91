"""The rendezvous server: the one port of a run that a user knows, at which workers and servers join the run.

A process proves that it has the run's token and receives the run's settings. The connection stays open for as long as
the process takes part. Workers send heartbeats over the connection and the server echoes them: each side notices at
once when the other side dies, and after a timeout when the network fails. RPC executes what it receives, so only
processes that joined learn its addresses; the README says what the token does not protect.
"""

import contextlib
import hmac
import secrets
import socket
import socketserver
import threading
import time
from typing import Any, Protocol

from psys.config import validate
from psys.errors import PsysError, reason_of, say
from psys.transport.address import enable_keepalive
from psys.transport.join_messages import (
    LINE_BYTES,
    REQUEST_BYTES,
    JoinRequest,
    JoinResponse,
    format_line,
    parse_line,
    proof_of,
)

_HANDSHAKE_SECONDS = 10.0  # for a process to answer the challenge
_SHUTDOWN_POLL_SECONDS = 0.1
_ACCEPT_SECONDS = 0.5  # between attempts, when no more files can be opened


class RendezvousHandler(Protocol):
    """What a rendezvous server calls, from its own threads. Names are "worker3" and "server1"."""

    def admit(self, request: JoinRequest) -> JoinResponse:
        """Answer a process that has the token. Raises PsysError to refuse; the process receives the error's text."""

    def server_ready(self, number: int, address: str) -> None:
        """Server `number` answers RPC calls at `address`."""

    def heartbeat(self, worker: str) -> None:
        """The worker sent a heartbeat."""

    def fault_injected(self, worker: str, fault: dict[str, Any]) -> None:
        """The worker is about to inject a fault into itself, as the fault plan says."""

    def left(self, worker: str) -> None:
        """The worker left the run by itself."""

    def disconnected(self, name: str) -> None:
        """The connection to a worker or a server ended, and the process had not left the run."""

    def join_refused(self, address: str, reason: str) -> None:
        """The process at `address` was not admitted."""


class RendezvousServer:
    """Serves a listening socket in threads of its own until `close`."""

    def __init__(self, listener: socket.socket, token: str, handler: RendezvousHandler) -> None:
        self._server = _Server(listener, token, handler)
        poll = (_SHUTDOWN_POLL_SECONDS,)
        threading.Thread(target=self._server.serve_forever, args=poll, name="rendezvous", daemon=True).start()

    def close(self) -> None:
        """Admit no more processes and end all connections."""
        self._server.shutdown()
        self._server.server_close()
        for joined in list(self._server.joined.values()):
            with contextlib.suppress(OSError):
                joined.connection.shutdown(socket.SHUT_RDWR)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, token: str, handler: RendezvousHandler) -> None:
        super().__init__(listener.getsockname()[:2], _Connection, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.token, self.handler = token, handler
        self.joined: dict[str, _Connection] = {}  # the newest connection of each name
        self.lock = threading.Lock()
        self._told = False  # that connections cannot be accepted

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if not self._told:
                say(f"cannot accept a connection: {reason_of(error)}")
            self._told = True
            time.sleep(_ACCEPT_SECONDS)  # the connection waits
            raise

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: a connection that breaks is reported to the handler."""


class _Connection(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        handler = self.server.handler
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            request = self._challenge()
            if request is None:
                return
            response = handler.admit(request)
        except (PsysError, OSError, EOFError) as error:
            reason = reason_of(error)[:500]
            handler.join_refused(f"{self.client_address[0]}:{self.client_address[1]}", reason)
            with contextlib.suppress(OSError):
                self._send({"refused": reason})
            return
        name = f"{request.role}{response.number}"
        with self.server.lock:
            self.server.joined[name] = self
        left = False
        try:
            self._send(response.model_dump(mode="json"))
            self._end_when_silent(request, response.heartbeat_timeout)
            while not left:
                left = self._receive(request, response.number, name)
        except (PsysError, OSError, ValueError, EOFError):
            pass
        finally:
            with self.server.lock:  # the handler learns of this end before another connection has the same name
                newest = self.server.joined.get(name) is self
                if newest:
                    del self.server.joined[name]
                if left:
                    handler.left(name)
                elif newest:
                    handler.disconnected(name)

    def _challenge(self) -> JoinRequest | None:
        """The request of a process that has the token; None: the connection sent nothing, as a probe of the port.

        Raises PsysError, OSError and EOFError.
        """
        challenge = secrets.token_hex(16)
        try:
            self._send({"psys": challenge})
            line = self._request_line()
        except ConnectionError:  # a probe that closes the connection does not read the challenge
            return None
        if not line:
            return None
        request = validate(JoinRequest, parse_line(line), where="the join request")
        if not hmac.compare_digest(request.proof.encode(), proof_of(self.server.token, challenge).encode()):
            raise PsysError("the token is not this run's (PSYS_TOKEN or --token-file)")
        return request

    def _request_line(self) -> bytes:
        """One line, whose deadline holds for the whole line: slow senders cannot extend it byte by byte."""
        deadline, line = time.monotonic() + _HANDSHAKE_SECONDS, b""
        while not line.endswith(b"\n") and len(line) < REQUEST_BYTES:
            self.connection.settimeout(max(0.001, deadline - time.monotonic()))
            received = self.rfile.read1(REQUEST_BYTES)
            if not received:
                break
            line += received
        return line

    def _end_when_silent(self, request: JoinRequest, heartbeat_timeout: float) -> None:
        """End this connection long after its process has become unreachable.

        A worker's failure is detected by its missing heartbeats: the timeout only ends the thread. A server sends no
        heartbeats: the kernels exchange keepalive probes.
        """
        if request.role == "worker":
            self.connection.settimeout(10 * heartbeat_timeout)
        else:
            self.connection.settimeout(None)
            enable_keepalive(self.connection, heartbeat_timeout)

    def _receive(self, request: JoinRequest, number: int, name: str) -> bool:
        """Handle the next line of a process that joined; returns whether the process leaves the run."""
        handler, line = self.server.handler, parse_line(self.rfile.readline(LINE_BYTES))
        match request.role, line:
            case "server", {"ready": str(address)}:
                handler.server_ready(number, address)
            case "worker", {"fault": dict(fault)}:
                handler.fault_injected(name, fault)
            case "worker", {"left": True}:
                return True
            case "worker", {"heartbeat": True}:
                handler.heartbeat(name)
                self._send(line)
        return False

    def _send(self, message: dict[str, Any]) -> None:
        self.connection.sendall(format_line(message))

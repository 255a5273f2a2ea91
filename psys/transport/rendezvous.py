"""The one port that a user knows: who comes proves that it has the run's token, learns what the run is, and holds on.

The connection stays open as long as both live. Workers beat on it and are echoed, so either side notices at once when
the other dies, and after a silence when the network between them does. Lines of JSON: nothing that comes is executed.
RPC, which does execute what it receives, is for those who passed here; see README for what the token does not do.
"""

import contextlib
import hashlib
import hmac
import json
import secrets
import socket
import socketserver
import threading
import time
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import Field

from psys.config import Config, validate
from psys.errors import PsysError
from psys.run.faults import FaultPlan

GATHERING_SECONDS = 120.0
"""For all servers to come; who comes before them is kept waiting."""

_LINE_BYTES, _KNOCK_BYTES = 1 << 20, 1 << 12
_HANDSHAKE_SECONDS = 10.0  # for a visitor to say who it is
_RETRY_SECONDS, _ATTEMPT_SECONDS = 0.25, 2.0
_BEATS_PER_TIMEOUT = 5


class Knock(Config):
    """What a visitor says after it was challenged."""

    proof: str = Field(max_length=64)
    """HMAC-SHA256 of the challenge, with the token as its key"""
    role: Literal["worker", "server"]
    number: int | None = Field(None, ge=0, lt=2**31)
    """of a server; of a worker that was here before"""
    incarnation: str = Field("", max_length=64)
    """of the server that a worker knew before"""


class Admission(Config):
    """What the door answers to those whom it lets in."""

    incarnation: str
    """of server 0: another one knows nothing of what was leased before it"""
    settings: str
    """RunConfig as JSON"""
    store_hash: str
    """content of the prepared store; everybody's own copy must have the same"""
    heartbeat_timeout: float
    number: int
    servers: tuple[str, ...]
    """RPC addresses of all servers, for a worker"""
    listen: str
    """the address that server 0 listens on"""
    faults: FaultPlan = FaultPlan()
    """what workers are to suffer on purpose"""


class Host(Protocol):
    """What stands behind a door; called from its threads."""

    def admit(self, knock: Knock) -> Admission:
        """Let one in who has the token. Raises PsysError, whose text the visitor gets."""

    def ready(self, server: int, address: str) -> None:
        """Another server can be called at `address`."""

    def beat(self, worker: str) -> None:
        """A sign of life."""

    def injected(self, worker: str, fault: dict[str, Any]) -> None:
        """The worker is about to do what its fault plan says."""

    def leave(self, worker: str) -> None:
        """The worker said good-bye."""

    def lost(self, name: str) -> None:
        """The connection to a worker or a server ended without one."""

    def refused(self, address: str, reason: str) -> None:
        """Somebody was not let in."""


class Door:
    """Answers at a listening socket, in threads, until closed."""

    def __init__(self, listener: socket.socket, token: str, host: Host) -> None:
        visits: dict[str, _Visit] = {}

        class Handler(_Visit):
            door = _Behind(host, token, visits, threading.Lock())

        self._server = _Threads(listener.getsockname()[:2], Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        self._visits = visits
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="door", daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more and hang up."""
        self._server.shutdown()
        self._server.server_close()
        for visit in list(self._visits.values()):
            with contextlib.suppress(OSError):
                visit.connection.shutdown(socket.SHUT_RDWR)


class _Threads(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A visitor that breaks off is no news; what it meant to those who wait for it, its visit has said."""


class _Behind(NamedTuple):
    host: Host
    token: str
    visits: "dict[str, _Visit]"  # the latest of each name
    lock: threading.Lock


class _Visit(socketserver.StreamRequestHandler):
    door: _Behind

    def handle(self) -> None:
        host = self.door.host
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        challenge = secrets.token_hex(16)
        try:
            self._say({"psys": challenge})
            knock = validate(Knock, self._hear_first(), where="the knock")
            if not hmac.compare_digest(knock.proof.encode(), _proof(self.door.token, challenge).encode()):
                raise PsysError("the token is not this run's (PSYS_TOKEN or --token-file)")
            admission = host.admit(knock)
        except (PsysError, OSError, EOFError) as error:
            reason = " ".join(str(error).split())[:500]
            host.refused(f"{self.client_address[0]}:{self.client_address[1]}", reason)
            with contextlib.suppress(OSError):
                self._say({"refused": reason})
            return
        name = f"{knock.role}{admission.number}"
        with self.door.lock:
            self.door.visits[name] = self
        left = False
        try:
            self._say(admission.model_dump(mode="json"))
            # A dead network is noticed by the silence; this only ends the thread.
            self.connection.settimeout(10 * admission.heartbeat_timeout)
            while not left:
                left = self._follow(name, admission.number, self._hear())
        except (PsysError, OSError, ValueError, EOFError):
            pass
        finally:
            with self.door.lock:  # nobody comes again under this name before the host has heard of its end
                current = self.door.visits.get(name) is self
                if current:
                    del self.door.visits[name]
                if left:
                    host.leave(name)
                elif current:
                    host.lost(name)

    def _follow(self, name: str, number: int, line: dict[str, Any]) -> bool:
        """Do what an admitted one says; whether that was good-bye."""
        match line:
            case {"ready": str(address)} if name.startswith("server"):
                self.door.host.ready(number, address)
            case {"fault": dict(fault)}:
                self.door.host.injected(name, fault)
            case {"left": True}:
                return True
            case {"beat": True}:
                self.door.host.beat(name)
                self._say(line)
        return False

    def _say(self, line: dict[str, Any]) -> None:
        self.connection.sendall(json.dumps(line).encode() + b"\n")

    def _hear(self) -> dict[str, Any]:
        return _parsed(self.rfile.readline(_LINE_BYTES))

    def _hear_first(self) -> dict[str, Any]:
        """The first line, for which there is so much time however slowly it comes."""
        deadline, line = time.monotonic() + _HANDSHAKE_SECONDS, b""
        while not line.endswith(b"\n") and len(line) < _KNOCK_BYTES:
            self.connection.settimeout(max(0.001, deadline - time.monotonic()))
            piece = self.rfile.read1(_KNOCK_BYTES)
            if not piece:
                break
            line += piece
        return _parsed(line)


class Lifeline:
    """A visitor's side of an admitted connection; beats in a thread of its own from `beat` on."""

    def __init__(self, connection: socket.socket, lines: Any, admission: Admission) -> None:
        self.admission = admission
        self.address: str = connection.getsockname()[0]
        self.lost = threading.Event()
        self._connection, self._lines = connection, lines
        self._closed = threading.Event()

    def say(self, **line: Any) -> None:
        """Send one line; what cannot be sent is lost with the line."""
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(line).encode() + b"\n")

    def beat(self) -> None:
        """Beat from now on; when no echo comes for the timeout, or the connection breaks, `lost` is set."""

        def beats() -> None:
            timeout = self.admission.heartbeat_timeout
            self._connection.settimeout(timeout)
            try:
                while not self._closed.is_set():
                    self._connection.sendall(b'{"beat": true}\n')
                    if not self._lines.readline(_LINE_BYTES):
                        break
                    self._closed.wait(timeout / _BEATS_PER_TIMEOUT)
            except (OSError, ValueError):
                pass
            self.lost.set()

        threading.Thread(target=beats, name="heartbeat", daemon=True).start()

    def listen(self) -> None:
        """From now on `lost` is set when the other side is gone; for one that does not beat."""

        def listens() -> None:
            with contextlib.suppress(OSError, ValueError):
                self._connection.settimeout(None)
                while self._lines.readline(_LINE_BYTES):
                    pass
            self.lost.set()

        threading.Thread(target=listens, name="lifeline", daemon=True).start()

    def close(self) -> None:
        """Hang up."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class RefusedError(PsysError):
    """The door's own word."""


def knock(
    host: str,
    port: int,
    token: str,
    role: Literal["worker", "server"],
    timeout_seconds: float,
    number: int | None = None,
    incarnation: str = "",
) -> Lifeline:
    """Come to the run at host:port, waiting for it to be there and all its servers with it.

    Raises PsysError when nothing answers in time, something else does, or one is not let in.
    """
    deadline = time.monotonic() + timeout_seconds
    who = {"role": role, "number": number, "incarnation": incarnation}
    while True:
        try:
            return _enter(host, port, token, who, max(0.1, deadline - time.monotonic()))
        except RefusedError as error:
            raise PsysError(f"the run at {host}:{port} does not let this {role} in: {error}") from None
        except (OSError, UnicodeError, OverflowError, EOFError) as error:
            passing = isinstance(error, OSError | EOFError) and not isinstance(error, socket.gaierror)
            if not passing or time.monotonic() > deadline:
                reason = getattr(error, "strerror", None) or str(error)
                raise PsysError(
                    f"no server at {host}:{port} ({reason}): is it running, and is that its port?"
                ) from None
            time.sleep(_RETRY_SECONDS)


def _enter(host: str, port: int, token: str, who: dict[str, Any], timeout_seconds: float) -> Lifeline:
    """Raises RefusedError, PsysError of what is no door, OSError and EOFError of one that is not there, or closing."""
    # A longer attempt would outlast the partition that it began in: the kernel tries again ever more seldom.
    connection = socket.create_connection((host, port), timeout=min(timeout_seconds, _ATTEMPT_SECONDS))
    try:
        connection.settimeout(timeout_seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = connection.makefile("rb")
        challenge = _parsed(lines.readline(_LINE_BYTES)).get("psys")
        if not isinstance(challenge, str):
            raise PsysError("it does not challenge")
        knocking = Knock(proof=_proof(token, challenge), **who)
        connection.sendall(knocking.model_dump_json().encode() + b"\n")
        connection.settimeout(GATHERING_SECONDS)
        answer = _parsed(lines.readline(_LINE_BYTES))
        if "refused" in answer:
            raise RefusedError(str(answer["refused"]))
        return Lifeline(connection, lines, validate(Admission, answer, where="the answer"))
    except BaseException as error:
        connection.close()
        if isinstance(error, PsysError) and not isinstance(error, RefusedError):
            raise PsysError(f"what listens at {host}:{port} is no psys server: {error}") from None
        raise


def _proof(token: str, challenge: str) -> str:
    # Neither the environment nor JSON holds UTF-8 only.
    key, message = (text.encode(errors="surrogatepass") for text in (token, challenge))
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def _parsed(line: bytes) -> dict[str, Any]:
    """The JSON object in a line. Raises PsysError of anything else, EOFError at the end of all lines."""
    if not line:
        raise EOFError("it hung up")
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        parsed = None
    if not line.endswith(b"\n") or not isinstance(parsed, dict):
        raise PsysError(f"a line of JSON was expected, got {line[:40]!r}")
    return parsed

"""A rendezvous server whose handler records its calls, a client that sends raw lines, and malformed lines."""

import contextlib
import json
import queue
import socket
from random import Random
from typing import Any

from psys.errors import PsysError
from psys.run.faults import Fault, FaultPlan
from psys.transport.join import RendezvousConnection, join
from psys.transport.join_messages import JoinRequest, JoinResponse, proof_of
from psys.transport.rendezvous import RendezvousServer

TOKEN = "the run's token"
SECONDS = 10.0
"""A deadline that no test reaches."""


class RecordingHandler:
    """A RendezvousHandler: numbers processes in turn, unless they name their number; `calls` are its calls in order."""

    def __init__(self) -> None:
        self.calls: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self.heartbeat_timeout = 5.0
        self.settings = "{}"
        self._numbers = 0

    def admit(self, request: JoinRequest) -> JoinResponse:
        self.calls.put(("admit", request.role, request.number))
        if request.role == "server" and request.number == 99:
            raise PsysError("this run has\n no server 99")
        number = self._numbers if request.number is None else request.number
        self._numbers = max(self._numbers, number + 1)
        return JoinResponse(
            incarnation="first",
            settings=self.settings,
            store_hash="hash",
            classes=10,
            image_size=(32, 32),
            heartbeat_timeout=self.heartbeat_timeout,
            join_timeout=SECONDS,
            number=number,
            servers=("a:1", "b:2"),
            listen="127.0.0.1",
            faults=FaultPlan(faults=(Fault(worker=0, step=1, kind="nan"),)),
        )

    def server_ready(self, number: int, address: str) -> None:
        self.calls.put(("server_ready", number, address))

    def heartbeat(self, worker: str) -> None:
        self.calls.put(("heartbeat", worker))

    def fault_injected(self, worker: str, fault: dict[str, Any]) -> None:
        self.calls.put(("fault_injected", worker, fault))

    def left(self, worker: str) -> None:
        self.calls.put(("left", worker))

    def disconnected(self, name: str) -> None:
        self.calls.put(("disconnected", name))

    def join_refused(self, address: str, reason: str) -> None:
        self.calls.put(("join_refused", reason))

    def next(self) -> tuple[Any, ...]:
        """The next call; waits for it."""
        return self.calls.get(timeout=SECONDS)


class RawClient:
    """A connection to a rendezvous server that sends any bytes."""

    def __init__(self, port: int) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self._lines = self.connection.makefile("rb")
        challenge = self.receive()
        assert challenge is not None
        self.proof = proof_of(TOKEN, challenge["psys"])

    def send_bytes(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # the server may have ended the connection already
            self.connection.sendall(data)

    def send(self, **message: Any) -> None:
        self.send_bytes(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next line; None at the end of the connection."""
        try:
            line = self._lines.readline()
        except ConnectionError:
            return None
        parsed = json.loads(line) if line else None
        assert parsed is None or isinstance(parsed, dict)
        return parsed

    def close(self) -> list[dict[str, Any]]:
        """End the sending side; returns the lines that were still to be received."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
        received = list(iter(self.receive, None))
        self._lines.close()
        self.connection.close()
        return received


class Rendezvous:
    """A rendezvous server on a free port of loopback, with its recording handler."""

    def __init__(self, handler: RecordingHandler | None = None, token: str = TOKEN) -> None:
        self.handler, self.token = handler or RecordingHandler(), token
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self.server = RendezvousServer(listener, token, self.handler)

    def join(self, number: int | None = None) -> RendezvousConnection:
        return join("127.0.0.1", self.port, self.token, "worker", SECONDS, number)

    def join_raw(self, number: int | None = None) -> RawClient:
        """A raw client that was admitted as a worker."""
        client = RawClient(self.port)
        client.send(proof=client.proof, role="worker", number=number)
        answer = client.receive()
        assert answer is not None
        JoinResponse.model_validate(answer)
        assert self.handler.next() == ("admit", "worker", number)
        return client


_DEPTHS = (10, 300, 900, 960, 975, 985, 990, 995, 1000, 5000, 100_000)
"""Of nested brackets: Python's recursion limit of 1000 is reached in the parser, or in a reader of its result."""


def nested_json(random: Random) -> bytes:
    """Deeply nested JSON, not always complete."""
    depth = random.choice(_DEPTHS)
    opened, closed = random.choice([(b"[", b"]"), (b'{"a":', b"}")])
    return opened * depth + random.choice([b"1", b""]) + closed * random.choice([depth, depth, 0])


def malformed_line(random: Random) -> bytes:
    """A line that is not a JSON object."""
    match random.randrange(6):
        case 0:
            return bytes(random.choices(range(128, 256), k=random.randint(1, 50))) + b"\n"
        case 1:
            return random.randbytes(random.randint(0, 2000)) + b"\xff\n"
        case 2:
            return random.choice(
                [b"\n", b"\0\n", b"{\n", b"GET / HTTP/1.1\r\n\r\n", b"{'heartbeat': True}\n", b"\x16\x03\1\n"]
            )
        case 3:
            return json.dumps(random.choice([None, True, 0, "psys", [], [{}]])).encode() + b"\n"
        case 4:
            return b"[" + nested_json(random) + b"]\n"
        case _:
            return random.choice([b"9" * 5000, b'{"a": ' + b"9" * 5000 + b"}", b"NaN", b"x" * (3 << 20)]) + b"\n"

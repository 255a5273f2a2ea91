"""Joining where no rendezvous server answers, or where something else does."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from psys.errors import PsysError
from psys.transport.join import join
from psys.transport.join_messages import JoinRequest
from tests.support.rendezvous import SECONDS, TOKEN, RecordingHandler, Rendezvous, malformed_line, nested_json

CHALLENGE = b'{"psys": "x"}\n'


@contextlib.contextmanager
def other_server(answer: Callable[[], bytes], stays: bool = True) -> Iterator[int]:
    """A server that sends `answer()` at once to every client, and closes the connection first unless it `stays`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.sendall(answer())
                while stays and connection.recv(1 << 16):
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(SECONDS)
        listener.close()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is bound and not listened on, so that connections are refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "stays", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", True, "is no psys server: a line of JSON"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", True, "is no psys server: a line of JSON"),
        (b"{}\n", True, "is no psys server: it sent no challenge"),
        (b'{"psys": 1}\n', True, "is no psys server: it sent no challenge"),
        (b"x" * (2 << 20), True, "is no psys server: a line of JSON"),
        (CHALLENGE + b"HTTP/1.1 400 Bad Request\r\n", True, "is no psys server: a line of JSON"),
        (b"", True, "no server at .*timed out"),
        (b'{"psys": "x"', True, "no server at .*timed out"),
        (b"", False, "no server at .*: start the run first"),
        (CHALLENGE, False, "no server at .*: start the run first"),
        (CHALLENGE, True, "the run at .* does not answer: are all its servers running?"),
    ],
)
def test_another_program_at_the_port_is_named_in_the_error(answer: bytes, stays: bool, message: str) -> None:
    with other_server(lambda: answer, stays) as port, pytest.raises(PsysError, match=message):
        join("127.0.0.1", port, TOKEN, "worker", 0.2)


def test_an_unused_port_is_an_error_after_the_timeout(closed_port: int) -> None:
    with pytest.raises(PsysError, match=rf"no server at 127.0.0.1:{closed_port} within 0.2 s \(Connection refused\)"):
        join("127.0.0.1", closed_port, TOKEN, "worker", 0.2)


def test_a_name_that_is_not_in_dns_is_an_error_after_the_timeout() -> None:
    with pytest.raises(PsysError, match=r"no server at no.such.host.invalid:9 within 0.2 s"):
        join("no.such.host.invalid", 9, TOKEN, "worker", 0.2)


@pytest.mark.parametrize("host", ["", "a" * 300, "a\0b", "..", "\ud800", "-"])
def test_a_name_that_cannot_be_in_dns_is_an_error_at_once(host: str) -> None:
    with pytest.raises(PsysError, match="is neither an IP address nor a possible host name"):
        join(host, 9, TOKEN, "worker", SECONDS)


def test_a_name_that_is_not_in_dns_yet_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rendezvous = Rendezvous()
    resolve, unknown = socket.getaddrinfo, [socket.EAI_NONAME, socket.EAI_AGAIN]

    def later(host: str, *arguments: Any, **options: Any) -> Any:
        if host == "server-0.example" and unknown:
            raise socket.gaierror(unknown.pop(0), "Name or service not known")
        return resolve("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", later)
    monkeypatch.setattr("psys.transport.join._QUIET_SECONDS", 0.0)
    connection = join("server-0.example", rendezvous.port, TOKEN, "worker", SECONDS)
    connection.close()
    rendezvous.server.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"psys: waiting for server-0.example:{rendezvous.port}: Name or service not known, for up to "
    )


@pytest.mark.parametrize("port", [-1, 65536, 10**10])
def test_a_port_that_does_not_exist_is_an_error(port: int) -> None:
    with pytest.raises(PsysError, match="a port is a number from 1 to 65535"):
        join("127.0.0.1", port, TOKEN, "worker", SECONDS)


def test_joining_is_repeated_until_the_server_answers() -> None:
    answers = iter([b"", b""])
    refusal = CHALLENGE + b'{"refused": "the run is full"}\n'
    with (
        other_server(lambda: next(answers, refusal), stays=False) as port,
        pytest.raises(PsysError, match="refused this worker: the run is full"),
    ):
        join("127.0.0.1", port, TOKEN, "worker", SECONDS)


def test_hostile_answers_raise_psys_errors() -> None:
    response: dict[str, Any] = RecordingHandler().admit(JoinRequest(proof="", role="worker")).model_dump(mode="json")
    asked = 0

    def answer() -> bytes:
        nonlocal asked
        random, asked = Random(asked), asked + 1
        match random.randrange(5):
            case 0:
                return CHALLENGE + malformed_line(random)
            case 1:
                return CHALLENGE + nested_json(random) + b"\n"
            case 2:
                return CHALLENGE + json.dumps({"refused": random.choice([None, [], "no", "\ud800"])}).encode() + b"\n"
            case 3:
                value: Any = random.choice(["x", [], {}, None, 1e400])
                wrong = {random.choice(["number", "classes", "heartbeat_timeout", "join_timeout"]): value}
                return b'{"psys": "\\ud800"}\n' + json.dumps({**response, **wrong}).encode() + b"\n"
            case _:
                missing = random.choice([name for name in response if name != "faults"])
                less = {name: value for name, value in response.items() if name != missing}
                return CHALLENGE + json.dumps(random.choice([less, {**response, "more": 1}])).encode() + b"\n"

    with other_server(answer) as port:
        for _ in range(200):
            with pytest.raises(PsysError, match=r"is no psys server|refused this worker"):
                join("127.0.0.1", port, TOKEN, "worker", SECONDS)
    assert asked == 200


@pytest.mark.parametrize("settings", ["", "[]", "{", "[" * 100_000, '{"modle": "resnet8"}', '{"servers": -1}'])
def test_settings_that_are_not_of_this_version_raise_a_psys_error(settings: str) -> None:
    rendezvous = Rendezvous()
    rendezvous.handler.settings = settings
    connection = rendezvous.join()
    with pytest.raises(PsysError):
        connection.config()
    connection.close()
    rendezvous.server.close()

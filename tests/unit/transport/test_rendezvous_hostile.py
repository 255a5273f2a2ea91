"""The rendezvous server with clients that do not follow the protocol."""

import json
import socket
import struct
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from tests.support.rendezvous import RawClient, Rendezvous, malformed_line, nested_json

_NOT_A_NUMBER: tuple[Any, ...] = (-1, 2**31, 10**30, 10**400, 1e308, float("inf"), float("nan"), 1.5, "x", "", [], {})
_NOT_A_STRING: tuple[Any, ...] = (None, True, 1, 1.5, [], {}, ["worker"], {"a": 1}, "\ud800", "x" * 65, "x" * 100_000)
_NOT_A_REQUEST: tuple[Any, ...] = (
    *(None, True, 0, 1.5, "psys", [], [{}]),
    *({}, {"refused": "x"}, {"psys": "x"}, {"\ud800": 1}),
)


@pytest.fixture
def rendezvous() -> Iterator[Rendezvous]:
    rendezvous = Rendezvous()
    yield rendezvous
    rendezvous.server.close()


def malformed_request(random: Random, proof: str) -> bytes:
    """No join request, although the correct proof may be in it."""
    good: dict[str, Any] = {"proof": proof, "role": "worker", "number": 3, "incarnation": "first"}

    def but(**fields: Any) -> bytes:
        return json.dumps({**good, **fields}).encode() + b"\n"

    whole = but()
    match random.randrange(10):
        case 0 | 1:
            return malformed_line(random)
        case 2:
            return whole[: random.randrange(len(whole) - 2)] + b"\n"
        case 3:
            return whole[: random.randrange(1, len(whole))]  # then the connection ends
        case 4:
            return but(number=random.choice(_NOT_A_NUMBER))
        case 5:
            return but(**{random.choice(["proof", "role", "incarnation"]): random.choice(_NOT_A_STRING)})
        case 6:
            return but(**{random.choice(["more", "", "psys", "x" * 1000, "\ud800"]): random.choice(_NOT_A_STRING)})
        case 7:
            return whole.replace(b'"first"', random.choice([b'"\xff"', b'"\xc3\x28"', b'"\xed\xa0\x80"', b"\xff\xfe"]))
        case 8:
            place = random.choice([b"3", b'"worker"', b'"first"', b'"' + proof.encode() + b'"'])
            return whole.replace(place, nested_json(random))
        case _:
            return json.dumps(random.choice(_NOT_A_REQUEST)).encode() + b"\n"


def test_malformed_join_requests_are_refused_and_the_server_goes_on(rendezvous: Rendezvous) -> None:
    cases, answered = 700, 0
    for seed in range(cases):
        client = RawClient(rendezvous.port)
        client.send_bytes(malformed_request(Random(seed), client.proof))
        received = client.close()
        assert len(received) <= 1
        call, reason = rendezvous.handler.next()
        assert call == "join_refused", f"seed {seed}: {reason}"
        assert 0 < len(reason) <= 500
        for line in received:
            assert line == {"refused": reason}
            answered += 1
    assert rendezvous.handler.calls.empty()
    assert answered > cases * 0.9  # a server that has not read all bytes resets the connection, and its answer is lost
    rendezvous.join_raw().close()


def test_malformed_lines_end_only_their_own_connection(rendezvous: Rendezvous) -> None:
    other = rendezvous.join_raw()
    for seed in range(150):
        client = rendezvous.join_raw()
        client.send_bytes(malformed_line(Random(seed)))
        assert client.close() == []
        assert rendezvous.handler.next() == ("disconnected", f"worker{seed + 1}")
        other.send(heartbeat=True)
        assert other.receive() == {"heartbeat": True}
        assert rendezvous.handler.next() == ("heartbeat", "worker0")
    other.close()


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"hello": 1},
        {"heartbeat": 1},
        {"heartbeat": False},
        {"left": "yes"},
        {"ready": 7},
        {"ready": None},
        {"fault": []},
        {"refused": "you"},
    ],
)
def test_unknown_messages_of_an_admitted_process_are_ignored(rendezvous: Rendezvous, message: dict[str, Any]) -> None:
    client = rendezvous.join_raw()
    client.send(**message)
    client.send(heartbeat=True)
    assert client.receive() == {"heartbeat": True}
    assert rendezvous.handler.next() == ("heartbeat", "worker0")
    client.close()


def test_silent_clients_do_not_keep_others_out(rendezvous: Rendezvous) -> None:
    silent = [RawClient(rendezvous.port) for _ in range(100)]
    rendezvous.join_raw().close()
    assert rendezvous.handler.next() == ("disconnected", "worker0")
    for client in silent:
        client.close()
    rendezvous.join_raw().close()
    assert rendezvous.handler.next() == ("disconnected", "worker1")  # probes of the port are not reported


def test_probes_that_reset_the_connection_are_not_reported(rendezvous: Rendezvous) -> None:
    """As kubelets ask whether a pod is ready."""
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", rendezvous.port)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    rendezvous.join_raw().close()
    assert rendezvous.handler.next() == ("disconnected", "worker0")

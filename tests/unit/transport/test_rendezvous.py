"""The rendezvous server with clients that follow the protocol."""

import contextlib
import errno
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from psys.errors import PsysError
from psys.transport import rendezvous as rendezvous_module
from psys.transport.join import join
from tests.support.rendezvous import SECONDS, TOKEN, RawClient, RecordingHandler, Rendezvous


@pytest.fixture
def rendezvous() -> Iterator[Rendezvous]:
    rendezvous = Rendezvous()
    yield rendezvous
    rendezvous.server.close()


def test_processes_with_the_token_receive_the_settings_of_the_run(rendezvous: Rendezvous) -> None:
    first, second = rendezvous.join(), rendezvous.join()
    assert [connection.response.number for connection in (first, second)] == [0, 1]
    assert first.response.servers == ("a:1", "b:2")
    assert first.response.classes == 10
    assert [fault.kind for fault in first.response.faults.at(0, 1)] == ["nan"]
    assert first.address == "127.0.0.1"
    server = join("127.0.0.1", rendezvous.port, TOKEN, "server", SECONDS, number=1)
    server.send(ready="10.0.0.1:4000")
    calls = [rendezvous.handler.next() for _ in range(4)]
    assert calls == [("admit", "worker", None)] * 2 + [("admit", "server", 1), ("server_ready", 1, "10.0.0.1:4000")]
    for connection in (first, second, server):
        connection.close()
    calls = [rendezvous.handler.next() for _ in range(3)]
    assert sorted(calls) == [("disconnected", name) for name in ("server1", "worker0", "worker1")]


def test_connections_wait_while_no_more_files_can_be_opened(
    rendezvous: Rendezvous, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accept, failures = socket.socket.accept, [errno.EMFILE, errno.EMFILE]

    def accept_later(self: socket.socket) -> tuple[socket.socket, Any]:
        if failures:
            raise OSError(failures.pop(), "Too many open files")
        return accept(self)

    monkeypatch.setattr(rendezvous_module, "_ACCEPT_SECONDS", 0.01)
    monkeypatch.setattr(socket.socket, "accept", accept_later)
    rendezvous.join().close()
    assert failures == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "psys: cannot accept a connection: too many open files: raise the limit with `ulimit -n`"


@pytest.mark.parametrize("token", ["another", "", TOKEN + " "])
def test_a_process_with_another_token_is_refused_before_the_handler_is_called(
    rendezvous: Rendezvous, token: str
) -> None:
    with pytest.raises(PsysError, match=rf"127.0.0.1:{rendezvous.port} refused this worker: the token is not"):
        join("127.0.0.1", rendezvous.port, token, "worker", SECONDS)
    call, reason = rendezvous.handler.next()
    assert (call, rendezvous.handler.calls.empty()) == ("join_refused", True)
    assert TOKEN not in reason


def test_a_proof_is_valid_for_the_challenge_of_its_own_connection_only(rendezvous: Rendezvous) -> None:
    other, client = RawClient(rendezvous.port), RawClient(rendezvous.port)
    client.send(proof=other.proof, role="worker")
    (answer,) = client.close()
    assert "token" in answer["refused"]
    other.close()


@pytest.mark.parametrize("token", ["", "\udcff", "ü"], ids=["empty", "not UTF-8", "not ASCII"])
def test_a_token_may_be_any_text(token: str) -> None:
    rendezvous = Rendezvous(token=token)
    rendezvous.join().close()
    rendezvous.server.close()


def test_a_refusal_of_the_handler_reaches_the_process_as_one_line(rendezvous: Rendezvous) -> None:
    with pytest.raises(PsysError, match="refused this server: this run has no server 99"):
        join("127.0.0.1", rendezvous.port, TOKEN, "server", SECONDS, number=99)
    assert [rendezvous.handler.next()[0] for _ in range(2)] == ["admit", "join_refused"]


def test_heartbeats_are_echoed_and_faults_reported(rendezvous: Rendezvous) -> None:
    client = rendezvous.join_raw()
    for _ in range(3):
        client.send(heartbeat=True)
        assert rendezvous.handler.next() == ("heartbeat", "worker0")
        assert client.receive() == {"heartbeat": True}
    client.send(fault={"kind": "slow", "step": 3})
    assert rendezvous.handler.next() == ("fault_injected", "worker0", {"kind": "slow", "step": 3})
    client.close()


def test_a_worker_cannot_send_a_servers_messages(rendezvous: Rendezvous) -> None:
    client = rendezvous.join_raw()
    client.send(ready="10.0.0.1:4000")
    client.send(heartbeat=True)
    assert rendezvous.handler.next() == ("heartbeat", "worker0")
    client.close()


def test_a_server_cannot_send_a_workers_messages(rendezvous: Rendezvous) -> None:
    server = join("127.0.0.1", rendezvous.port, TOKEN, "server", SECONDS, number=1)
    server.send(heartbeat=True)
    server.send(fault={})
    server.send(left=True)
    server.send(ready="10.0.0.1:4000")
    assert rendezvous.handler.next() == ("admit", "server", 1)
    assert rendezvous.handler.next() == ("server_ready", 1, "10.0.0.1:4000")
    server.close()
    assert rendezvous.handler.next() == ("disconnected", "server1")


def test_the_deadline_of_a_join_request_is_not_extended_by_its_bytes(
    rendezvous: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psys.transport.rendezvous._HANDSHAKE_SECONDS", 0.2)
    calls: list[tuple[Any, ...]] = []
    with socket.create_connection(("127.0.0.1", rendezvous.port)) as slow:
        while not calls:
            with contextlib.suppress(OSError):
                slow.sendall(b" ")
            with contextlib.suppress(queue.Empty):
                calls.append(rendezvous.handler.calls.get(timeout=0.02))
    assert calls[0][0] == "join_refused"


def test_a_worker_that_leaves_is_not_reported_as_disconnected(rendezvous: Rendezvous) -> None:
    connection = rendezvous.join()
    connection.send(left=True)
    connection.close()
    assert [rendezvous.handler.next() for _ in range(2)] == [("admit", "worker", None), ("left", "worker0")]
    connection.send(left=True)  # on the closed connection the message is dropped
    client = rendezvous.join_raw()
    client.send(left=True)
    assert client.receive() is None
    assert rendezvous.handler.next() == ("left", "worker1")
    client.close()
    assert rendezvous.handler.calls.empty()


def test_a_connection_that_ends_is_reported_as_disconnected(rendezvous: Rendezvous) -> None:
    rendezvous.join_raw().close()
    assert rendezvous.handler.next() == ("disconnected", "worker0")


def test_the_end_of_an_older_connection_of_a_name_is_not_reported(rendezvous: Rendezvous) -> None:
    older = rendezvous.join_raw()
    newer = rendezvous.join_raw(number=0)
    assert older.close() == []
    newer.send(heartbeat=True)
    assert newer.receive() == {"heartbeat": True}
    assert rendezvous.handler.next() == ("heartbeat", "worker0")
    newer.close()
    assert rendezvous.handler.next() == ("disconnected", "worker0")
    assert rendezvous.handler.calls.empty()


def test_a_disconnection_is_reported_before_the_name_is_connected_again() -> None:
    """A report afterwards would be taken for the end of the new connection."""
    noticed, reconnected = threading.Event(), threading.Event()
    order: list[str] = []

    class SlowHandler(RecordingHandler):
        def disconnected(self, name: str) -> None:
            noticed.set()
            reconnected.wait(0.5)  # a correct server lets this time out
            order.append("disconnected")
            super().disconnected(name)

    rendezvous = Rendezvous(SlowHandler())
    older = rendezvous.join()
    assert rendezvous.handler.next()[0] == "admit"
    older.close()
    assert noticed.wait(10)
    newer = rendezvous.join(number=0)
    order.append("reconnected")
    reconnected.set()
    assert {rendezvous.handler.next()[0] for _ in range(2)} == {"admit", "disconnected"}
    assert order == ["disconnected", "reconnected"]
    newer.close()
    rendezvous.server.close()


def test_heartbeats_go_on_until_the_server_is_closed(rendezvous: Rendezvous) -> None:
    rendezvous.handler.heartbeat_timeout = 0.5
    beating, watching = rendezvous.join(), rendezvous.join()
    beating.start_heartbeat()
    watching.watch()
    calls = [rendezvous.handler.next() for _ in range(6)]
    assert calls.count(("heartbeat", "worker0")) == 4
    assert not beating.lost.is_set()
    assert not watching.lost.is_set()
    rendezvous.server.close()
    assert beating.lost.wait(SECONDS)
    assert watching.lost.wait(SECONDS)
    with pytest.raises(PsysError, match=f"no server at 127.0.0.1:{rendezvous.port}"):
        join("127.0.0.1", rendezvous.port, TOKEN, "worker", 0.1)
    beating.close()
    watching.close()


def test_a_silent_server_stays_connected_longer_than_a_silent_worker(rendezvous: Rendezvous) -> None:
    rendezvous.handler.heartbeat_timeout = 0.01
    server = join("127.0.0.1", rendezvous.port, TOKEN, "server", SECONDS, number=1)
    assert rendezvous.handler.next() == ("admit", "server", 1)
    worker = rendezvous.join_raw()
    assert rendezvous.handler.next() == ("disconnected", f"worker{server.response.number + 1}")
    server.send(ready="10.0.0.1:4000")
    assert rendezvous.handler.next() == ("server_ready", 1, "10.0.0.1:4000")
    worker.close()
    server.close()

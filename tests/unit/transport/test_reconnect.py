"""A worker that loses its servers, over a transport whose outcomes the test decides."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from psys.errors import PsysError
from psys.ps.messages import Grant, Lease, Push
from psys.run.config import RunConfig
from psys.transport.join import RendezvousConnection
from psys.transport.join_messages import JoinRequest, JoinResponse
from psys.transport.protocol import RunRejectedError, ServerUnavailableError
from psys.transport.reconnect import ReconnectingWorker, ServerRestartedError, SettingsChangedError
from psys.transport.registration import Registration
from psys.transport.rendezvous import RendezvousServer
from tests.support.rendezvous import SECONDS, TOKEN, RecordingHandler, Rendezvous

LEASE = Lease(batch=3, attempt=0, worker="worker0", version=7, slot=0)
PUSH = Push(LEASE, loss=1.0, correct=1, views=2, gradient_norm=1.0)
GRANT = Grant(LEASE._replace(batch=4))
UNAVAILABLE = ServerUnavailableError("server0 does not answer")

Outcome = Grant | Exception | Callable[[], Grant]


class RunHandler(RecordingHandler):
    """A run of one server that numbers workers as a real run does."""

    def __init__(self, config: RunConfig, workers_named: int = 0) -> None:
        super().__init__()
        self.registration = Registration(config, "hash", 10, (32, 32), "127.0.0.1", workers_named)
        self.registration.server_ready(0, "a:1")

    def admit(self, request: JoinRequest) -> JoinResponse:
        self.calls.put(("admit", request.role, request.number))
        return self.registration.admit(request)


class Run:
    """A run that can be started again at the same port, and the transports that its worker made."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.outcomes: list[Outcome] = []
        self.attach_outcomes: list[Exception] = []
        self.transports: list[FakeTransport] = []
        self.start(config)

    def start(self, config: RunConfig, handler: RunHandler | None = None) -> None:
        """Start server 0: with a new incarnation, or with that of `handler`."""
        self.handler = handler or RunHandler(config)
        self.server = RendezvousServer(self._listener.dup(), TOKEN, self.handler)

    def stop(self) -> None:
        self.server.close()

    def close(self) -> None:
        self.stop()
        self._listener.close()

    def connect(self, connection: RendezvousConnection) -> "FakeTransport":
        self.transports.append(FakeTransport(self, connection.response.number))
        return self.transports[-1]

    def worker(self) -> ReconnectingWorker:
        """A worker that is attached."""
        worker = ReconnectingWorker("127.0.0.1", self.port, TOKEN, SECONDS)
        worker.attach(self.connect)
        return worker


class FakeTransport:
    """A WorkerTransport whose calls have the outcomes that the run lists."""

    def __init__(self, run: Run, number: int) -> None:
        self.number = number
        self.calls: list[tuple[Push | None, tuple[Lease, ...]]] = []
        self.closed = threading.Event()
        self._run = run

    def attach(self) -> None:
        if self._run.attach_outcomes:
            raise self._run.attach_outcomes.pop(0)

    def push_pull(self, push: Push | None, holding: tuple[Lease, ...] = ()) -> Grant:
        assert not self.closed.is_set()
        self.calls.append((push, holding))
        outcome = self._run.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome if isinstance(outcome, Grant) else outcome()

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def run() -> Iterator[Run]:
    run = Run(RunConfig(patience=SECONDS))
    yield run
    run.close()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psys.transport.reconnect._RETRY_SECONDS", 0.01)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


def next_call(handler: RecordingHandler, call: str) -> tuple[Any, ...]:
    """The handler's next call of that name; the ones before it are skipped."""
    while True:
        found = handler.next()
        if found[0] == call:
            return found


def test_a_worker_knows_the_settings_and_sends_heartbeats_once_attached(run: Run) -> None:
    worker = ReconnectingWorker("127.0.0.1", run.port, TOKEN, SECONDS)
    assert worker.config == run.config
    assert (worker.response.number, worker.response.classes) == (0, 10)
    assert run.handler.next() == ("admit", "worker", None)
    assert run.handler.calls.empty()
    worker.attach(run.connect)
    assert run.handler.next() == ("heartbeat", "worker0")
    run.outcomes = [GRANT]
    assert worker.push_pull(PUSH, (LEASE,)) == GRANT
    worker.announce_fault({"kind": "slow"})
    assert next_call(run.handler, "fault_injected") == ("fault_injected", "worker0", {"kind": "slow"})
    worker.close()
    assert next_call(run.handler, "left") == ("left", "worker0")
    assert run.transports[0].closed.is_set()


def test_a_call_to_an_unavailable_server_is_repeated_on_a_new_transport(run: Run) -> None:
    worker = run.worker()
    run.outcomes = [UNAVAILABLE, UNAVAILABLE, GRANT]
    assert worker.push_pull(PUSH, (LEASE,)) == GRANT
    assert [transport.calls for transport in run.transports] == [[(PUSH, (LEASE,))]] * 3
    assert [transport.number for transport in run.transports] == [0, 0, 0]
    assert [transport.closed.is_set() for transport in run.transports] == [True, True, False]
    worker.close()


def test_a_rejected_call_is_not_repeated(run: Run) -> None:
    worker = run.worker()
    run.outcomes = [RunRejectedError("worker0 is not in this run")]
    with pytest.raises(RunRejectedError, match="worker0 is not in this run"):
        worker.push_pull(PUSH)
    assert len(run.transports) == 1
    worker.close()


def test_an_attach_that_is_rejected_while_reconnecting_is_not_repeated(run: Run) -> None:
    worker = run.worker()
    run.outcomes, run.attach_outcomes = [UNAVAILABLE], [RunRejectedError("the buffer has another size")]
    with pytest.raises(RunRejectedError, match="the buffer has another size"):
        worker.push_pull(PUSH)
    worker.close()


def test_an_attach_to_an_unavailable_server_is_repeated(run: Run) -> None:
    run.attach_outcomes = [UNAVAILABLE, UNAVAILABLE]
    worker = run.worker()
    run.outcomes = [GRANT]
    assert worker.push_pull(None) == GRANT
    assert len(run.transports) == 3
    worker.close()


def test_a_missing_heartbeat_makes_the_worker_reconnect_before_its_next_call() -> None:
    run = Run(RunConfig(heartbeat_timeout=0.5))
    connections: list[RendezvousConnection] = []

    def connect(connection: RendezvousConnection) -> FakeTransport:
        connections.append(connection)
        return run.connect(connection)

    worker = ReconnectingWorker("127.0.0.1", run.port, TOKEN, SECONDS)
    worker.attach(connect)
    run.stop()
    assert connections[0].lost.wait(SECONDS)
    run.start(run.config, run.handler)
    run.outcomes = [GRANT]
    assert worker.push_pull(PUSH) == GRANT
    assert [len(transport.calls) for transport in run.transports] == [0, 1]
    worker.close()
    run.close()


def test_a_restarted_server_is_reported_because_it_does_not_know_the_leases(run: Run) -> None:
    worker = run.worker()
    run.stop()
    run.start(run.config, RunHandler(run.config, workers_named=5))
    run.outcomes = [UNAVAILABLE, GRANT]
    with pytest.raises(ServerRestartedError):
        worker.push_pull(PUSH)
    assert worker.response.number == 5
    run.outcomes = [GRANT]
    assert worker.push_pull(None) == GRANT
    worker.close()


def test_a_restart_before_the_first_lease_is_not_reported(run: Run) -> None:
    worker = ReconnectingWorker("127.0.0.1", run.port, TOKEN, SECONDS)
    run.stop()
    run.start(run.config)
    run.attach_outcomes = [UNAVAILABLE]
    worker.attach(run.connect)
    run.outcomes = [GRANT]
    assert worker.push_pull(None) == GRANT
    worker.close()


def test_a_run_with_other_settings_is_reported(run: Run) -> None:
    worker = run.worker()
    run.stop()
    run.start(RunConfig(model="mlp16"))
    run.outcomes = [UNAVAILABLE]
    with pytest.raises(SettingsChangedError):
        worker.push_pull(PUSH)
    assert len(run.transports) == 1  # the buffer would have another size
    worker.close()


def test_servers_that_stay_away_for_the_patience_are_an_error() -> None:
    run = Run(RunConfig(patience=0))
    worker = run.worker()
    run.close()
    run.outcomes = [UNAVAILABLE]
    with pytest.raises(PsysError, match=f"lost .* 127.0.0.1:{run.port}: Connection refused, for 0 s .*--patience"):
        worker.push_pull(PUSH)
    worker.close()


def test_a_dropped_reply_makes_the_worker_repeat_its_push_once(run: Run) -> None:
    worker = run.worker()
    worker.drop_reply(LEASE)
    run.outcomes = [GRANT, GRANT._replace(lease=None), GRANT]
    assert worker.push_pull(None) == GRANT
    assert worker.push_pull(PUSH) == GRANT
    assert run.transports[0].calls == [(None, ()), (PUSH, ()), (PUSH, ())]
    worker.close()


def test_closing_ends_a_call_of_another_thread(run: Run, threads: ThreadPoolExecutor) -> None:
    worker = run.worker()
    calling = threading.Event()

    def wait_for_close() -> Grant:
        calling.set()
        assert run.transports[0].closed.wait(SECONDS)
        raise UNAVAILABLE

    run.outcomes = [wait_for_close]
    call = threads.submit(worker.push_pull, PUSH)
    assert calling.wait(SECONDS)
    worker.close()
    with pytest.raises(ServerUnavailableError):
        call.result(SECONDS)
    assert next_call(run.handler, "left") == ("left", "worker0")
    assert len(run.transports) == 1


def test_a_worker_closed_while_it_reconnects_leaves_the_run(run: Run, threads: ThreadPoolExecutor) -> None:
    worker = run.worker()
    admitted, closed = threading.Event(), threading.Event()

    class WaitingHandler(RunHandler):
        def admit(self, request: JoinRequest) -> JoinResponse:
            admitted.set()
            assert closed.wait(SECONDS)
            return super().admit(request)

    run.stop()
    run.start(run.config, WaitingHandler(run.config))
    run.outcomes = [UNAVAILABLE]
    call: Future[Grant] = threads.submit(worker.push_pull, PUSH)
    assert admitted.wait(SECONDS)
    worker.close()
    closed.set()
    with pytest.raises(ServerUnavailableError, match="this worker has left the run"):
        call.result(SECONDS)
    assert next_call(run.handler, "left") == ("left", "worker0")
    assert len(run.transports) == 1


def test_settings_that_are_not_of_this_version_end_the_connection() -> None:
    rendezvous = Rendezvous()
    rendezvous.handler.settings = '{"bach_size": 8}'
    with pytest.raises(PsysError, match="unknown setting 'bach_size', did you mean 'batch_size'"):
        ReconnectingWorker("127.0.0.1", rendezvous.port, TOKEN, SECONDS)
    assert next_call(rendezvous.handler, "disconnected") == ("disconnected", "worker0")
    rendezvous.server.close()

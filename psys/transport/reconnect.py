"""A worker's transport that reconnects after the network failed or the servers were started again."""

import contextlib
import threading
import time
from collections.abc import Callable

from psys.errors import PsysError, say
from psys.ps.messages import Grant, Lease, Push
from psys.transport.join import JOIN_SECONDS, RendezvousConnection, join
from psys.transport.join_messages import JoinResponse
from psys.transport.protocol import RunRejectedError, ServerUnavailableError, WorkerTransport

_RETRY_SECONDS = 0.5

Connect = Callable[[RendezvousConnection], WorkerTransport]


class ServerRestartedError(Exception):
    """The worker is connected to a new server 0, which does not know the leases that the worker holds."""


class SettingsChangedError(Exception):
    """The run came back with other settings, for which this worker's model and buffer were not made."""


class ReconnectingWorker:
    """Joins a run as a worker; its calls are repeated until the run answers. Only `close` may come from another thread.

        worker = ReconnectingWorker(host, port, token)
        worker.attach(connect)
        grant = worker.push_pull(None)

    Raises PsysError if no run answers at host:port within `timeout_seconds`, or if the run refuses the worker.
    """

    def __init__(self, host: str, port: int, token: str, timeout_seconds: float = JOIN_SECONDS) -> None:
        self._host, self._port, self._token = host, port, token
        self._connect: Connect | None = None
        self._transport: WorkerTransport | None = None
        self._dropped: Lease | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()  # of connection and transport: one thread may close while another reconnects
        self._connection = join(host, port, token, "worker", timeout_seconds)
        try:
            self.config = self._connection.config()
        except PsysError:
            self._connection.close()
            raise

    @property
    def response(self) -> JoinResponse:
        """The run's latest answer to this worker."""
        return self._connection.response

    def attach(self, connect: Connect) -> None:
        """Start heartbeats, and connect to the servers with the transport that `connect` makes for a connection."""
        self._connect = connect
        try:
            self._attach()
        except ServerUnavailableError as error:
            with contextlib.suppress(ServerRestartedError):  # this worker holds no lease yet
                self._reconnect(error)

    def push_pull(self, push: Push | None, holding: tuple[Lease, ...] = ()) -> Grant:
        """Call push_pull (see WorkerTransport) until a server answers: a repeated push is applied once.

        Raises ServerRestartedError, SettingsChangedError, RunRejectedError, and PsysError if no server answers for the
        run's `patience`.
        """
        while True:
            try:
                if self._connection.lost.is_set():
                    raise ServerUnavailableError("no heartbeat")
                assert self._transport is not None
                grant = self._transport.push_pull(push, holding)
            except ServerUnavailableError as error:
                self._reconnect(error)
                continue
            if push is None or push.lease != self._dropped:
                return grant
            self._dropped = None

    def drop_reply(self, lease: Lease) -> None:
        """Inject a fault: the next reply to a push of this lease is treated as lost."""
        self._dropped = lease

    def announce_fault(self, fault: dict[str, object]) -> None:
        """Tell the run that this worker is about to inject a fault into itself."""
        self._connection.send(fault=fault)

    def close(self) -> None:
        """Leave the run. A call under way in another thread raises ServerUnavailableError."""
        with self._lock:
            self._closed.set()
            self._connection.send(left=True)
            self._disconnect()

    def _reconnect(self, error: ServerUnavailableError) -> None:
        if self._closed.is_set():
            raise error
        say(f"lost the servers ({error}): reconnecting")
        before = self.response
        deadline = time.monotonic() + self.config.patience
        while True:
            try:
                self._join_again(before, deadline)
                same = self.response.settings == before.settings
                if same:  # with other settings the buffer does not have the size that the servers expect
                    self._attach()
                break
            except RunRejectedError:
                raise
            except (PsysError, ServerUnavailableError) as again:
                if self._closed.is_set():
                    raise
                if time.monotonic() > deadline:
                    reason, seconds = getattr(again, "reason", again), self.config.patience
                    raise PsysError(
                        f"lost the servers of the run at {self._host}:{self._port}: {reason}, for {seconds:g} s "
                        "(--patience); start this worker again when the run goes on"
                    ) from None
                self._closed.wait(_RETRY_SECONDS)
        if not same:
            raise SettingsChangedError
        say("reconnected")
        if self.response.incarnation != before.incarnation:
            raise ServerRestartedError

    def _join_again(self, before: JoinResponse, deadline: float) -> None:
        with self._lock:
            if self._closed.is_set():
                raise ServerUnavailableError("this worker has left the run")
            self._disconnect()
        seconds = max(_RETRY_SECONDS, deadline - time.monotonic())
        connection = join(self._host, self._port, self._token, "worker", seconds, before.number, before.incarnation)
        with self._lock:
            if self._closed.is_set():
                connection.send(left=True)
                connection.close()
                raise ServerUnavailableError("this worker has left the run")
            self._connection = connection

    def _attach(self) -> None:
        assert self._connect is not None
        with self._lock:
            if self._closed.is_set():
                raise ServerUnavailableError("this worker has left the run")
            self._connection.start_heartbeat()
            transport = self._transport = self._connect(self._connection)
        transport.attach()

    def _disconnect(self) -> None:
        self._connection.close()
        if self._transport is not None:
            self._transport.close()
            self._transport = None

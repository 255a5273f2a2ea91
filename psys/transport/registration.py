"""Server 0's registry: the numbers of all processes that join, and the servers' RPC addresses."""

import secrets
import threading
import time
from collections.abc import Callable

from psys.errors import PsysError
from psys.run.config import RunConfig
from psys.run.faults import read_plan
from psys.transport.join_messages import JoinRequest, JoinResponse

_POLL_SECONDS = 0.2


class Registration:
    """Numbers and addresses. Every call may come from any thread.

    Workers get the numbers 0, 1, 2 ...; while this server lives, no other worker gets the same number. `workers_named`
    numbers were assigned before this server was resumed from a checkpoint. Servers 1, 2 ... that the run starts itself
    name their number; the last `remote_servers` numbers go to servers that join without one.
    """

    def __init__(
        self,
        config: RunConfig,
        store_hash: str,
        classes: int,
        image_size: tuple[int, int],
        listen: str,
        workers_named: int = 0,
    ) -> None:
        self.incarnation = secrets.token_hex(8)
        self.workers_named = workers_named
        self._config, self._settings = config, config.model_dump_json()
        self._store_hash, self._classes, self._image_size = store_hash, classes, image_size
        self._listen, self._faults = listen, read_plan(config.faults)
        self._changed = threading.Condition()
        self._joined: set[int] = set()  # numbers of the other servers
        self._addresses: dict[int, str] = {}
        self._gathered = False

    def admit(self, request: JoinRequest) -> JoinResponse:
        """Number a process. A worker waits until all servers are ready.

        Raises PsysError if the run has no place for that server, or if servers are missing after `join_timeout`.
        """
        with self._changed:
            if request.role == "server":
                number, addresses = self._server_number(request.number), tuple[str, ...]()
                self._joined.add(number)
            else:
                if not self._ready_from(0, self._config.join_timeout):
                    raise PsysError(self._missing())
                addresses = self._addresses_from(0)
                number = self._worker_number(request)
                self.workers_named = max(self.workers_named, number + 1)
            return JoinResponse(
                incarnation=self.incarnation,
                settings=self._settings,
                store_hash=self._store_hash,
                classes=self._classes,
                image_size=self._image_size,
                heartbeat_timeout=self._config.heartbeat_timeout,
                join_timeout=self._config.join_timeout,
                number=number,
                servers=addresses,
                listen=self._listen,
                faults=self._faults,
            )

    def server_ready(self, number: int, address: str) -> None:
        """Server `number`, 0 included, answers calls at `address`."""
        with self._changed:
            self._addresses[number] = address
            self._changed.notify_all()

    def server_left(self, number: int) -> bool:
        """The connection to server `number` ended. Returns whether another server may take its place.

        No server can once `other_servers` has returned: the run uses the address, and has lost a slice.
        """
        with self._changed:
            if not self._gathered:
                self._joined.discard(number)
                self._addresses.pop(number, None)
            return not self._gathered

    def other_servers(self, stopped: Callable[[], bool]) -> tuple[str, ...] | None:
        """Wait for the addresses of servers 1, 2 ...; None if `stopped()` meanwhile.

        Raises PsysError if servers are missing after `join_timeout`.
        """
        deadline = time.monotonic() + self._config.join_timeout
        with self._changed:
            while not self._ready_from(1, min(_POLL_SECONDS, max(0.0, deadline - time.monotonic()))):
                if stopped():
                    return None
                if time.monotonic() >= deadline:
                    raise PsysError(self._missing())
            self._gathered = True
            return self._addresses_from(1)

    def _server_number(self, named: int | None) -> int:
        local, remote = self._config.servers - self._config.remote_servers, self._config.remote_servers
        if named is not None:
            if not 1 <= named < local:
                raise PsysError(f"this run starts servers 0 to {local - 1} itself, server {named} is none of them")
            if named in self._joined:
                raise PsysError(f"server {named} of this run has joined already")
            return named
        free = sorted(set(range(local, self._config.servers)) - self._joined)
        if not free:
            raise PsysError(f"all {remote} places for remote servers (--remote-servers) of this run are taken")
        return free[0]

    def _worker_number(self, request: JoinRequest) -> int:
        known = request.incarnation == self.incarnation
        if known and request.number is not None and request.number < self.workers_named:
            return request.number
        return self.workers_named

    def _ready_from(self, first: int, seconds: float) -> bool:
        """Wait, with the lock, until all servers from number `first` on are ready. Returns whether they are."""
        wanted = range(first, self._config.servers)
        return self._changed.wait_for(lambda: all(number in self._addresses for number in wanted), seconds)

    def _addresses_from(self, first: int) -> tuple[str, ...]:
        return tuple(self._addresses[number] for number in range(first, self._config.servers))

    def _missing(self) -> str:
        """Which servers did not join in time, and what to do."""
        config = self._config
        missing = [number for number in range(1, config.servers) if number not in self._addresses]
        remote = sum(number >= config.servers - config.remote_servers for number in missing)
        what = f"{len(missing)} of the {config.servers} servers" if missing else "server 0"
        how = f"start {remote} with --role server --join HOST:PORT" if remote else "see the messages of the servers"
        return f"{what} of this run did not join within {config.join_timeout:g} s: {how}"

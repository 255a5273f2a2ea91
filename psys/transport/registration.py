"""Who is who in a run: numbers for those who come, the servers' addresses for those who ask."""

import secrets
import threading

from psys.errors import PsysError
from psys.run.config import RunConfig
from psys.run.faults import read_plan
from psys.transport.rendezvous import GATHERING_SECONDS, Admission, Knock


class Reception:
    """Server 0's list of addresses and names; called from the door's threads and from its own.

    A worker's number is never given to another while this server lives; `named` numbers were given before.
    """

    def __init__(self, config: RunConfig, store_hash: str, listen: str, named: int = 0) -> None:
        self.incarnation = secrets.token_hex(8)
        self.named = named
        self._config, self._settings, self._store_hash = config, config.model_dump_json(), store_hash
        self._listen, self._faults = listen, read_plan(config.faults)
        self._changed = threading.Condition()
        self._addresses: dict[int, str] = {}

    def admit(self, knock: Knock) -> Admission:
        """Raises PsysError for a number that the run does not have, and when not all servers come in time."""
        servers = self._config.servers
        with self._changed:
            if knock.role == "server":
                if knock.number is None or not 1 <= knock.number < servers:
                    raise PsysError(f"this run has {servers} servers, there is no number {knock.number}")
                number = knock.number
            else:
                self._wait_for(servers)
                known = knock.incarnation == self.incarnation and knock.number is not None and knock.number < self.named
                number = knock.number if known and knock.number is not None else self.named
                self.named = max(self.named, number + 1)
            return Admission(
                incarnation=self.incarnation,
                settings=self._settings,
                store_hash=self._store_hash,
                heartbeat_timeout=self._config.heartbeat_timeout,
                number=number,
                servers=tuple(self._addresses[i] for i in range(servers)) if knock.role == "worker" else (),
                listen=self._listen,
                faults=self._faults,
            )

    def ready(self, server: int, address: str) -> None:
        """That server answers calls now."""
        with self._changed:
            self._addresses[server] = address
            self._changed.notify_all()

    def others(self) -> list[str]:
        """Wait for the addresses of servers 1, 2 ... Raises PsysError when not all come in time."""
        servers = self._config.servers
        with self._changed:
            self._wait_for(servers - 1)
            return [self._addresses[i] for i in range(1, servers)]

    def _wait_for(self, servers: int) -> None:
        if not self._changed.wait_for(lambda: len(self._addresses) >= servers, GATHERING_SECONDS):
            raise PsysError(f"not all of the {self._config.servers} servers came within {GATHERING_SECONDS:.0f} s")

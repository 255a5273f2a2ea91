"""Servers and workers in one process: calls are plain calls, in the thread of the caller."""

from collections.abc import Callable, Sequence
from typing import Any

from psys.errors import PsysError
from psys.transport.chunks import Call, WorkerClient
from psys.transport.protocol import (
    CoordinatorService,
    RunRejectedError,
    ServerUnavailableError,
    ShardControl,
    ShardService,
)
from psys.transport.shared_memory import WorkerBuffer


class InProcessNetwork:
    """The servers that can be called, by address."""

    def __init__(self) -> None:
        self.servers: dict[str, tuple[ShardService, CoordinatorService | None]] = {}


class InProcessServer:
    """The ServerTransport of server `number`."""

    def __init__(self, number: int, network: InProcessNetwork) -> None:
        self._address, self._network = f"server{number}", network

    def serve(self, shard: ShardService, coordinator: CoordinatorService | None = None) -> str:
        self._network.servers[self._address] = shard, coordinator
        return self._address

    def connect(self, number: int, address: str) -> ShardControl:
        return self._network.servers[address][0]

    def close(self) -> None:
        self._network.servers.pop(self._address, None)


class InProcessWorker(WorkerClient):
    """A worker's WorkerTransport to the servers at the addresses `servers`.

    `push_pull` waits for the policy, so each worker needs a thread of its own.
    """

    def __init__(self, number: int, network: InProcessNetwork, servers: Sequence[str], buffer: WorkerBuffer) -> None:
        super().__init__(f"worker{number}", buffer, [_Connection(network, address) for address in servers])


class _Connection:
    def __init__(self, network: InProcessNetwork, address: str) -> None:
        self._network, self._address = network, address

    def start(self, method: str, *arguments: object) -> Call:
        if self._address not in self._network.servers:
            raise ServerUnavailableError(f"{self._address} is gone")
        shard, coordinator = self._network.servers[self._address]
        function: Callable[..., Any] = getattr(coordinator if method == "push_pull" else shard, method)
        try:
            result = function(*arguments)
        except (PsysError, ValueError) as error:
            raise RunRejectedError(str(error)) from None
        return result if method == "push_pull" else _Done(result)


class _Done:
    def __init__(self, result: Any) -> None:
        self._result = result

    def wait(self) -> Any:
        return self._result

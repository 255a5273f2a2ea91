"""The seam between a run and what carries its calls: torch RPC between processes, plain calls within one.

Workers call servers; nobody calls a worker. Control values (see ps.messages) travel with the calls, vectors travel
through worker buffers: in place where the server can map the worker's memory, in chunks elsewhere. One contract test,
tests/integration/test_transport_contract.py, runs over every implementation.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor
from torch.futures import Future

from psys.errors import PsysError
from psys.ps.messages import Grant, Lease, Push, Step


class ServerUnavailableError(Exception):
    """A server cannot be reached or did not answer in time. The call may be repeated: nothing is applied twice."""


class RunRejectedError(PsysError):
    """A server answered that the call is wrong, in one line. To repeat the call would not help."""


class BufferAddress(NamedTuple):
    """Where on its host a worker's buffer can be mapped, and the token that proves that it is this buffer."""

    pid: int
    fd: int
    token: bytes


class WorkerTransport(Protocol):
    """A worker's calls to all servers. Raises ServerUnavailableError and RunRejectedError."""

    def attach(self) -> None:
        """Make the worker's buffer known to every server, before the first push_pull and after every reconnection."""

    def push_pull(self, push: Push | None, holding: tuple[Lease, ...] = ()) -> Grant:
        """Hand in the gradient in the lease's slot (None: none) and wait for a batch beside the leases `holding`.

        The parameters then lie in the slot of the granted lease.
        """

    def close(self) -> None:
        """End the connections. A call under way in another thread raises ServerUnavailableError."""


class ShardControl(Protocol):
    """What server 0 asks of every server, itself included."""

    def advance(self, steps: Sequence[Step]) -> "Future[None]":
        """Apply steps in order; done when the parameters are in all readers' buffers."""

    def read_state(self, step: int, name: str, start: int, stop: int) -> "Future[Tensor]":
        """Elements [start, stop) of a vector of the state that `step` kept (see ps.store.SliceState.vectors)."""

    def forget_state(self, step: int) -> None:
        """The state that `step` kept has been read."""

    def write_state(self, version: int, name: str, start: int, values: Tensor) -> "Future[None]":
        """Overwrite elements of the slice's state from `start` on, before the first step: a checkpoint is restored."""

    def finish(self, complete: bool) -> None:
        """The run has ended, and the server may: `complete` if nothing is left to train."""


class ShardService(ShardControl, Protocol):
    """What every server offers for its slice of the parameters. Each call may come from any thread."""

    def attach(self, worker: str, address: BufferAddress, nbytes: int) -> bool:
        """A worker has come, or come back, with its buffer. Returns whether this server can map it.

        If not, the worker moves the bytes with put and get. Raises ValueError if the buffer is not of the run's size.
        """

    def put(self, worker: str, offset: int, chunk: Tensor) -> None:
        """Bytes (uint8) of the worker's buffer from `offset` on, for a server that cannot map it."""

    def get(self, worker: str, offset: int, length: int) -> Tensor:
        """Bytes (length,) uint8 of the worker's buffer as this server has it."""


class CoordinatorService(Protocol):
    """What server 0 offers besides its slice. Each call may come from any thread."""

    def push_pull(self, worker: str, push: Push | None, holding: tuple[Lease, ...]) -> "Future[Grant]":
        """Hand in a gradient and ask for a batch; answered when the policy lets the worker start.

        Raises RunRejectedError of a worker that was not admitted to the run.
        """


class ServerTransport(Protocol):
    """One server's side: it answers workers and server 0."""

    def serve(self, shard: ShardService, coordinator: CoordinatorService | None = None) -> str:
        """Answer calls from now on; returns the address that workers and server 0 connect to.

        Server 0 passes the `coordinator`. Raises PsysError if the address to listen on is not this host's.
        """

    def connect(self, number: int, address: str) -> ShardControl:
        """Server 0's calls to server `number`."""

    def close(self) -> None:
        """Answer no more calls."""

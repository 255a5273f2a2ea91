"""What workers and servers say to each other beyond the door, whatever carries it. Vectors go through lanes."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor
from torch.futures import Future

from psys.ps.coordinator import Grant, Update
from psys.ps.ledger import Lease
from psys.ps.store import Snapshot, StoreState
from psys.transport.shared_memory import LaneAddress


class Push(NamedTuple):
    """A computed batch, whose gradient stands in the lease's slot: it counts once for the lease it names."""

    lease: Lease
    loss: float
    correct: int
    views: int
    gradient_norm: float  # Euclidean


class Reader(NamedTuple):
    """Where in a worker's lane parameters go, and how far ahead of the version made last (see Grant.drift)."""

    slot: int
    drift: float


class Advance(NamedTuple):
    """What every server does next; all do the same in the same order, so a version is the same on all of them."""

    number: int  # 0, 1, 2 ...
    updates: tuple[Update, ...]
    readers: dict[str, Reader]  # by worker: into their lanes the parameters go afterwards
    released: tuple[str, ...]  # workers whose lanes are not used any more


class CoordinatorService(Protocol):
    """What server 0 offers besides its slice; each call may come from any thread."""

    def push_pull(self, worker: str, push: Push | None, holding: tuple[Lease, ...]) -> "Future[Grant]":
        """Hand in a gradient (None: nothing to hand in) and ask for work beside the leases that are still `holding`.

        Answered when the policy lets it start, and `settle` has been called. Raises PsysError of a worker that was not
        admitted at the door.
        """

    def settle(self) -> None:
        """Carry out what has been decided. To be called after a push_pull, or after some that come one upon the other:
        what they make of the parameters is made in one go then.
        """


class ShardControl(Protocol):
    """What server 0 asks of every server, itself included."""

    def advance(self, steps: Sequence[Advance]) -> "Future[None]":
        """Make the versions of each step and deliver its last; done when all readers' lanes hold theirs."""

    def snapshot(self) -> "Future[Snapshot]":
        """The slice at the version made last."""

    def state(self) -> "Future[StoreState]":
        """All of the slice at the version made last, for a checkpoint."""

    def restore(self, state: StoreState) -> None:
        """Go on from a checkpoint, before the first step. Raises ValueError if it does not fit."""

    def finish(self) -> None:
        """The run is over: nobody will call any more."""


class ShardService(ShardControl, Protocol):
    """What every server offers for its slice of the parameters; each call may come from any thread."""

    def attach(self, worker: str, address: LaneAddress, nbytes: int) -> bool:
        """A worker has come, or come back, with its lane of `nbytes`. Whether it can be seen from here.

        If not, the worker moves its bytes with put and get. Raises ValueError if the lane is not of the run's size.
        """

    def put(self, worker: str, offset: int, chunk: Tensor) -> None:
        """Bytes (uint8) of the worker's lane, from `offset` on, for a server that cannot see it."""

    def get(self, worker: str, offset: int, length: int) -> Tensor:
        """Bytes (length,) uint8 of the worker's lane as this server has it."""

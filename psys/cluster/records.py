"""What server 0 keeps of things that are decided and not all done: answers to give, updates to log, snapshots to save."""

from typing import NamedTuple

from torch.futures import Future

from psys.cluster.transport import Push, Work
from psys.ps.coordinator import Update
from psys.ps.store import Snapshot


class Stamped(NamedTuple):
    """A snapshot to be evaluated later, stamped with when it was reached; a slice from each server, in order."""

    slices: list[Snapshot]
    version: int
    epochs: float
    train_seconds: float


class Made(NamedTuple):
    """An update, the training seconds it was made at, and what was pushed for it, in the order of its leases."""

    update: Update
    seconds: float
    pushes: list[Push]


class Reached(NamedTuple):
    """How far the run is."""

    version: int
    epochs: float
    seconds: float


class Answer(NamedTuple):
    """What a worker hears once every server has done its part."""

    waiting: "Future[Work]"
    work: Work
    done: "list[Future[None]]"

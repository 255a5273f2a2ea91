"""What server 0 keeps of things decided and not all done: answers to give, updates to log, snapshots to save."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from torch.futures import Future

from psys.errors import LostServerError
from psys.ps.coordinator import Grant, Update
from psys.ps.ledger import Lease
from psys.ps.store import Snapshot
from psys.transport.protocol import Push

T = TypeVar("T")


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

    @property
    def loss(self) -> float:
        """Mean over the views."""
        return sum(push.loss * push.views for push in self.pushes) / self._views

    @property
    def accuracy(self) -> float:
        return sum(push.correct for push in self.pushes) / self._views

    @property
    def _views(self) -> int:
        return sum(push.views for push in self.pushes)

    def fields(self) -> dict[str, Any]:
        """Of its event."""
        leases = self.update.leases
        return {
            "version": self.update.version,
            "seconds": round(self.seconds, 4),
            "epochs": round(self.update.epochs_done, 6),
            "learning_rate": self.update.learning_rate,
            "batches": [lease.batch for lease in leases],
            "attempts": [lease.attempt for lease in leases],
            "workers": [lease.worker for lease in leases],
            "staleness": self.update.staleness,
            "gradient_norms": [push.gradient_norm for push in self.pushes],
            "loss": round(self.loss, 6),
            "accuracy": round(self.accuracy, 6),
        }


class Reached(NamedTuple):
    """How far the run is."""

    version: int
    epochs: float
    seconds: float


class Request(NamedTuple):
    """A worker waits for an answer, beside the leases that it is still holding."""

    answer: "Future[Grant]"
    holding: tuple[Lease, ...]


class Answer(NamedTuple):
    """What a worker hears once every server has done its part."""

    waiting: "Future[Grant]"
    grant: Grant


def waited(futures: "Sequence[Future[T]]") -> list[T]:
    """What servers answered. Raises LostServerError when one is gone."""
    try:
        return [future.wait() for future in futures]
    except RuntimeError as error:
        raise lost(error) from None


def lost(error: Exception) -> LostServerError:
    """What to raise of it."""
    lines = str(error).split(" (this error originated")[0].splitlines()
    # What was raised on another server comes behind a line that names it.
    reason = next((line for line in lines if not line.startswith("On WorkerInfo")), type(error).__name__)
    return LostServerError(f"lost a server and its part of the parameters: {reason}")

"""What workers and the server say to each other, whatever carries it."""

from typing import NamedTuple, Protocol

from torch import Tensor
from torch.futures import Future

from psys.ps.ledger import Lease
from psys.ps.store import Snapshot


class Welcome(NamedTuple):
    """The server's answer to a newcomer: everything it needs to compute the same gradients as all others."""

    settings: str  # RunConfig as JSON
    store_hash: str  # content of the prepared store; the worker's own copy must have the same


class Push(NamedTuple):
    """A computed batch: its gradient counts once for the lease it names."""

    lease: Lease
    gradient: Tensor  # (n,) float32
    statistics: Tensor  # (m,) float32
    loss: float
    correct: int
    views: int


class Work(NamedTuple):
    """The next batch and the parameters to compute it on; no lease: the run is over."""

    lease: Lease | None
    snapshot: Snapshot


class Service(Protocol):
    """What a server offers; each call may come from any thread."""

    def hello(self) -> Welcome:
        """A worker has come and asks what the run is. It takes part from its first `push_pull`."""

    def push_pull(self, worker: int, push: Push | None) -> "Future[Work]":
        """Deliver a gradient (None: the first call) and ask for more work; answered when the policy lets it start."""

    def beat(self, worker: int) -> None:
        """A sign of life."""

    def leave(self, worker: int) -> None:
        """The worker goes and will not push again."""

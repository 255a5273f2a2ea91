"""The values that workers, servers and the run controller exchange. Vectors are not among them: they lie in slots."""

from collections.abc import Mapping
from typing import Literal, NamedTuple


class Lease(NamedTuple):
    """One batch assigned to one worker. `attempt` tells a reissued lease from the lease that was taken back."""

    batch: int  # position in the run: see BatchPlan; with local steps, the position of a lease of several batches
    attempt: int
    worker: str
    version: int  # version of the parameters that the worker reads for this batch
    slot: int  # slot of the worker's buffer that receives the parameters and then holds the gradient


class Push(NamedTuple):
    """A computed batch whose gradient lies in the lease's slot. The gradient counts once for this lease."""

    lease: Lease
    loss: float  # mean over the views
    correct: int
    views: int
    gradient_norm: float  # Euclidean, before clipping
    # Where the worker's time went, in seconds, as the worker measured it.
    compute_seconds: float = 0.0  # on this gradient
    wait_seconds: float = 0.0  # of call_seconds: see Grant
    call_seconds: float = 0.0  # that it stood still for the push_pull that brought the lease; its first call counts 0


class Grant(NamedTuple):
    """The answer to a worker's push_pull.

    A grant without a lease ends the run for the worker; to a worker that holds another lease it says that no batch is
    left to be leased in advance.
    """

    lease: Lease | None
    momentum_look_ahead: float = 0.0  # the server moves the parameters by this multiple of the momentum vector
    gradient_look_ahead: float = 0.0  # the worker moves them by this multiple of the gradient it has not pushed yet
    stopped: bool = False  # without a lease: the run ends before its last batch
    late: bool = False  # the gradient pushed with the call came too late and was not applied (see ledger.Receipt)
    learning_rate: float = 0.0  # of the worker's own steps, if it takes any
    wait_seconds: float = 0.0  # from the request to the decision to answer it


class Update(NamedTuple):
    """One new version: the mean of the leases' gradients, weighted by their shares."""

    version: int
    leases: tuple[Lease, ...]
    shares: tuple[float, ...]  # of the update's samples, for each lease
    staleness: tuple[int, ...]  # of each lease: updates applied between reading the parameters and this update
    learning_rate: float
    statistics_share: float  # weight of the new running statistics: 1 replaces the old ones
    epochs_done: float  # after this update
    damping: tuple[float, ...]  # of each lease's gradient: what it is multiplied by, besides its share


class Reader(NamedTuple):
    """Where in a worker's buffer the parameters go, and how far ahead (see Grant.momentum_look_ahead)."""

    slot: int
    momentum_look_ahead: float


Kept = Literal["snapshot", "checkpoint"]
"""What a server keeps of its slice: parameters and statistics, or the optimizer's vectors as well."""


class Step(NamedTuple):
    """What every server does next. All servers apply the same steps in the same order and reach the same versions."""

    number: int  # 0, 1, 2 ...
    updates: tuple[Update, ...] = ()
    readers: Mapping[str, Reader] = {}  # by worker: who receives the parameters after the updates
    released: tuple[str, ...] = ()  # workers whose buffers are not used any more
    keep: Kept | None = None  # copy the slice's state after the updates, to be read under the step's number


# Events: what happens to a run. The run controller handles one after the other.


class Joined(NamedTuple):
    """A worker was admitted by the rendezvous server, for the first time or again."""

    worker: str


class Heartbeat(NamedTuple):
    """A worker gave a sign of life."""

    worker: str


class Left(NamedTuple):
    """A worker left the run by itself."""

    worker: str


class Disconnected(NamedTuple):
    """The connection to a worker broke."""

    worker: str


class PushPull(NamedTuple):
    """A worker hands in a gradient (None: it has none) and asks for a batch beside the leases it is still `holding`."""

    worker: str
    push: Push | None
    holding: tuple[Lease, ...] = ()


class StepApplied(NamedTuple):
    """Every server has applied the step of this number, and all before it."""

    number: int


class Tick(NamedTuple):
    """Time has passed. Expected several times a second."""


class Stop(NamedTuple):
    """The run is to end early: no other lease is granted, and leases under way are still applied.

    Those that the policy gives up as too late stay unapplied: of each round the latest, if there are backup workers.
    """


class CheckpointNow(NamedTuple):
    """A checkpoint is wanted before it is due."""


class Evaluated(NamedTuple):
    """A snapshot was evaluated on the held-out images."""

    version: int
    epochs: float  # batches applied, in epochs
    loss: float  # mean cross-entropy
    accuracy: float  # 0 to 1
    images: int

    @property
    def merit(self) -> tuple[float, float]:
        """What the best snapshot has most of: accuracy, and of two with the same accuracy the lower loss."""
        return self.accuracy, -self.loss


Event = Joined | Heartbeat | Left | Disconnected | PushPull | StepApplied | Tick | Stop | CheckpointNow | Evaluated

"""The record of a run: one typed value for each line of `events.jsonl`.

`event` names the kind. `seconds` are the training seconds at which the event happened. What the run controller decides
is logged in the order of its decisions. The order and the names of the fields are the file format; FORMAT changes with
them.
"""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from psys.ps.messages import Lease

FORMAT = 4
"""Version of the format of `events.jsonl`, in every `start` event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What all events have: the wall-clock time at which the line was written, which is no part of a decision."""

    time: float | None = field(default=None, compare=False)
    """seconds since 1970-01-01 UTC, to the millisecond; None: not written to a file"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Record):
    """Server 0 started the run, or resumed it from the checkpoint of `version`."""

    event: Literal["start", "resume"]
    format: int = FORMAT
    store: str
    """content hash of the prepared store"""
    version: int
    seconds: float
    batches: int
    counts: dict[str, int]
    """the ledger's counts at the checkpoint"""
    attempts: dict[int, int]
    """of batches leased and not applied: the attempt of the next lease"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined(Record):
    """A worker asked for its first batch, or for one after it was taken for dead."""

    event: Literal["join"] = "join"
    worker: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSuspected(Record):
    """A worker was silent for half the heartbeat timeout."""

    event: Literal["suspect"] = "suspect"
    worker: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLeft(Record):
    """A worker takes no part any more. reason: left, disconnected, or silent for the heartbeat timeout."""

    event: Literal["leave"] = "leave"
    worker: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateApplied(Record):
    """All servers applied one update; the lists have one entry for each gradient of it, in batch order."""

    event: Literal["update"] = "update"
    version: int
    seconds: float
    epochs: float
    learning_rate: float
    batches: tuple[int, ...]
    attempts: tuple[int, ...]
    workers: tuple[str, ...]
    staleness: tuple[int, ...]
    gradient_norms: tuple[float, ...]
    """Euclidean, before clipping"""
    compute_seconds: tuple[float, ...] = field(compare=False)
    """what the worker took to compute the gradient; time decides nothing"""
    wait_seconds: tuple[float, ...] = field(compare=False)
    """of call_seconds: the worker waited for the mode, a batch or a slot"""
    call_seconds: tuple[float, ...] = field(compare=False)
    """the worker stood still for the call that brought the batch"""
    loss: float
    """mean over the views"""
    accuracy: float
    """share of the views, 0 to 1"""
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasesReturned(Record):
    """Batches are due again: their worker is gone, never received the leases, or was `late`."""

    event: Literal["returned"] = "returned"
    leases: tuple[Lease, ...]
    late: bool
    """the policy gave the leases up, of workers that go on: a push of such a lease is refused as late"""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PushRefused(Record):
    """A gradient was not applied. receipt: duplicate, expired, damaged or late (see ledger.Receipt)."""

    event: Literal["refused"] = "refused"
    receipt: str
    lease: Lease
    compute_seconds: float = field(default=0.0, compare=False)
    wait_seconds: float = field(default=0.0, compare=False)
    call_seconds: float = field(default=0.0, compare=False)
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultInjected(Record):
    """A worker is about to do what the fault plan says."""

    event: Literal["fault"] = "fault"
    worker: str
    step: int
    kind: str
    duration: float
    """seconds that it lasts, where that applies"""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRefused(Record):
    """A process was not admitted to the run."""

    event: Literal["join_refused"] = "join_refused"
    address: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSaved(Record):
    """The parameters of a version were written, to be evaluated later."""

    event: Literal["snapshot"] = "snapshot"
    version: int
    epochs: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFailed(Record):
    """A snapshot could not be written; the run goes on."""

    event: Literal["snapshot_failed"] = "snapshot_failed"
    version: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotEvaluated(Record):
    """A snapshot was evaluated on the held-out images."""

    event: Literal["evaluation"] = "evaluation"
    version: int
    loss: float
    """mean cross-entropy"""
    accuracy: float
    """share of right predictions, 0 to 1"""
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedEarly(Record):
    """The run is to end: for `patience` epochs no snapshot was better than that of `best_version`."""

    event: Literal["early_stop"] = "early_stop"
    best_version: int
    best_accuracy: float
    """on held-out images, 0 to 1"""
    patience: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDiverged(Record):
    """The run is to end: the gradient of `batch` was not finite several times (see controller.MAX_DAMAGED)."""

    event: Literal["diverged"] = "diverged"
    version: int
    """the lowest version of the parameters at which that gradient was computed"""
    batch: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsChanged(Record):
    """The run was resumed with other settings, written before its `resume`: they apply after `version`."""

    event: Literal["settings"] = "settings"
    version: int
    changed: dict[str, tuple[JsonValue, JsonValue]]
    """by dotted name of the setting: its value before and after"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved(Record):
    """A checkpoint was written in `took` seconds of wall-clock time."""

    event: Literal["checkpoint"] = "checkpoint"
    version: int
    seconds: float
    took: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFailed(Record):
    """A checkpoint could not be written; the run goes on."""

    event: Literal["checkpoint_failed"] = "checkpoint_failed"
    version: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Record):
    """The run is over; the counts are the ledger's (see ledger.BatchAccount)."""

    event: Literal["end"] = "end"
    seconds: float
    batches: int
    leased: int
    applied: int
    reissued: int
    duplicates: int
    expired: int
    damaged: int
    late: int
    unfinished: int
    lost: int


RunEvent = (
    RunStarted
    | WorkerJoined
    | WorkerSuspected
    | WorkerLeft
    | UpdateApplied
    | LeasesReturned
    | PushRefused
    | FaultInjected
    | JoinRefused
    | SnapshotSaved
    | SnapshotFailed
    | SnapshotEvaluated
    | StoppedEarly
    | RunDiverged
    | SettingsChanged
    | CheckpointSaved
    | CheckpointFailed
    | RunEnded
)

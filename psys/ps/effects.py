"""What follows from an event of a run: whoever drives the run controller carries it out."""

from dataclasses import dataclass, field
from typing import NamedTuple

from psys.ps.events import RunEvent
from psys.ps.ledger import BatchAccount, LedgerState
from psys.ps.messages import Grant, Step


class Reply(NamedTuple):
    """What to answer a worker once every server has applied the step `after` (-1: at once)."""

    worker: str
    grant: Grant
    after: int


class Save(NamedTuple):
    """Every server keeps the slice's state of one version under the number of `step`: it is to be written now."""

    step: int
    version: int
    epochs: float
    seconds: float  # of training
    snapshot: bool  # parameters and statistics are to be evaluated later
    ledger: LedgerState | None  # of a checkpoint of the same version


class RunEnd(NamedTuple):
    """The run is over. `failure`: what the user must mend, if the run ended because of it."""

    account: BatchAccount
    seconds: float  # of training
    failure: str | None
    stopped_early: bool

    @property
    def complete(self) -> bool:
        """Nothing is left to train: every batch is applied, or training no longer improved the model."""
        return self.stopped_early or not self.account.unfinished


@dataclass
class Effects:
    """What follows from one event."""

    steps: list[Step] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    log: list[RunEvent] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    end: RunEnd | None = None

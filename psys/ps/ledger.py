"""The finite list of batches of a run, each leased to one worker and its gradient counted exactly once."""

import heapq
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from itertools import pairwise
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from psys.config import Config
from psys.data.batch_plan import BatchPlan
from psys.ps.messages import Lease


class Receipt(Enum):
    """The ledger's decision on a pushed lease.

    ACCEPTED   the first gradient for this batch: it will be applied
    DUPLICATE  a gradient of this batch was accepted before (a retry, or a reissued lease was faster): not applied
    EXPIRED    the lease was taken back from a worker taken for dead, and the batch is due again: not applied
    DAMAGED    the gradient has a NaN or an infinity, and the batch is due again: not applied
    LATE       the lease was given up because its worker was too late (see policy), and the batch is due again, or was
               since computed by another worker: not applied
    """

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    EXPIRED = "expired"
    DAMAGED = "damaged"
    LATE = "late"


class _State(IntEnum):
    PENDING = 0
    LEASED = 1
    ACCEPTED = 2
    APPLIED = 3


@dataclass
class BatchAccount:
    """The ledger's counts of a run. `lost` counts batches in no known state; it must be 0.

    `duplicates`, `expired`, `damaged` and `late` are refused pushes (see Receipt). `reissued` counts leases of batches
    that were leased before. `unfinished` counts batches that were not applied.
    """

    batches: int
    leased: int = 0
    applied: int = 0
    reissued: int = 0
    duplicates: int = 0
    expired: int = 0
    damaged: int = 0
    late: int = 0
    unfinished: int = 0
    lost: int = 0


class LedgerState(Config):
    """The part of a ledger that a checkpoint holds. Batches leased or accepted and not applied are due again."""

    applied: tuple[tuple[NonNegativeInt, NonNegativeInt], ...]
    """ranges of batches, [first, last), ascending"""
    fresh: NonNegativeInt
    """the first batch that was never leased"""
    attempts: dict[NonNegativeInt, PositiveInt]
    """of batches leased and not applied: the attempt of the next lease"""
    counts: dict[Literal["leased", "reissued", "duplicates", "expired", "damaged", "late"], NonNegativeInt]


class Ledger:
    """Leases batches in order, takes leases back from lost workers, and counts what became of every batch.

    A run is `epochs` passes over `samples` in batches of `batch_size`, of other sizes in `earlier` epochs (see
    BatchPlan).
    """

    def __init__(self, epochs: int, samples: int, batch_size: int, earlier: Sequence[tuple[int, int]] = ()) -> None:
        if min(epochs, samples, batch_size) < 1:
            raise ValueError(f"a run needs epochs, samples and batch_size >= 1, got {epochs}, {samples}, {batch_size}")
        self.plan = BatchPlan(samples, batch_size, earlier)
        self.batches = self.plan.batches(epochs)
        self._state = bytearray(self.batches)
        self._fresh = 0
        self._returned: list[int] = []
        self._outstanding: dict[int, Lease] = {}
        self._outstanding_of: defaultdict[str, dict[int, Lease]] = defaultdict(dict)
        self._late: dict[tuple[str, int], Lease] = {}  # the latest lease given up, by worker and slot
        self._attempts: dict[int, int] = {}
        self._counts = BatchAccount(self.batches)
        self._applied = [0] * self.plan.parts  # batches, by part of the plan

    def restore(self, state: LedgerState) -> None:
        """Continue, as a new ledger of the same run, from another's state. Raises ValueError if it does not fit."""
        ends = [end for span in state.applied for end in span]
        if ends != sorted(set(ends)) or state.fresh > self.batches or max(ends, default=0) > state.fresh:
            raise ValueError(f"the ledger's ranges of applied batches do not fit a run of {self.batches} batches")
        for first, last in state.applied:
            self._state[first:last] = bytes([_State.APPLIED]) * (last - first)
            for batch in range(first, last):
                self._applied[self.plan.part_of(batch)] += 1
        self._fresh = state.fresh
        self._returned = [batch for batch in range(self._fresh) if self._state[batch] == _State.PENDING]
        if set(state.attempts) != set(self._returned):
            raise ValueError("the ledger's attempts are not those of the batches it has leased and not applied")
        self._attempts = dict(state.attempts)
        applied = self._state.count(_State.APPLIED)
        self._counts = BatchAccount(self.batches, applied=applied, **state.counts)

    def state(self) -> LedgerState:
        """The state for a checkpoint."""
        leased = self._state[: self._fresh]
        ranges = [found.span() for found in re.finditer(bytes([_State.APPLIED]) + b"+", leased)]
        gaps = pairwise([0, *(edge for span in ranges for edge in span), self._fresh])
        out = [batch for first, last in list(gaps)[::2] for batch in range(first, last)]
        attempts = {batch: self._attempts.get(batch, 0) + (self._state[batch] != _State.PENDING) for batch in out}
        names = "leased", "reissued", "duplicates", "expired", "damaged", "late"
        counts = {name: getattr(self._counts, name) for name in names}
        return LedgerState(applied=tuple(ranges), fresh=self._fresh, attempts=attempts, counts=counts)

    @property
    def exhausted(self) -> bool:
        """No batch is waiting to be leased; some may be leased and not applied."""
        return self._fresh == self.batches and not self._returned

    @property
    def finished(self) -> bool:
        """Every batch of the run has been applied."""
        return self._counts.applied == self.batches

    @property
    def epochs_done(self) -> float:
        """Batches applied, in epochs."""
        return self.plan.epochs(self._applied)

    def size(self, batch: int) -> int:
        """Samples in `batch`."""
        return self.plan.size(batch)

    @property
    def next_due(self) -> tuple[int, int] | None:
        """Batch and attempt of the next lease; None if `exhausted`."""
        if self.exhausted:
            return None
        batch = self._returned[0] if self._returned else self._fresh
        return batch, self._attempts.get(batch, 0)

    def lease(self, worker: str, version: int, slot: int) -> Lease:
        """Lease the earliest batch that is due. Raises LookupError if `exhausted`."""
        due = self.next_due
        if due is None:
            raise LookupError("no batch is due")
        if self._returned:
            heapq.heappop(self._returned)
        else:
            self._fresh += 1
        lease = Lease(*due, worker, version, slot)
        batch = lease.batch
        self._state[batch] = _State.LEASED
        self._outstanding[batch] = self._outstanding_of[worker][batch] = lease
        self._counts.leased += 1
        self._counts.reissued += lease.attempt > 0
        return lease

    def accept(self, lease: Lease, finite: bool = True) -> Receipt:
        """Decide on a pushed lease; an ACCEPTED one must be applied later. `finite`: whether its gradient is."""
        if self._outstanding.get(lease.batch) == lease:
            if not finite:
                self.take_back([lease])
                self._counts.damaged += 1
                return Receipt.DAMAGED
            self._remove(lease)
            self._state[lease.batch] = _State.ACCEPTED
            return Receipt.ACCEPTED
        if self._late.get((lease.worker, lease.slot)) == lease:
            self._counts.late += 1
            return Receipt.LATE
        if self._state[lease.batch] in (_State.ACCEPTED, _State.APPLIED):
            self._counts.duplicates += 1
            return Receipt.DUPLICATE
        self._counts.expired += 1
        return Receipt.EXPIRED

    def apply(self, lease: Lease) -> None:
        """The accepted gradient of `lease` is part of the parameters now."""
        assert self._state[lease.batch] == _State.ACCEPTED, f"batch {lease.batch} applied without being accepted"
        self._state[lease.batch] = _State.APPLIED
        self._attempts.pop(lease.batch, None)
        self._counts.applied += 1
        self._applied[self.plan.part_of(lease.batch)] += 1

    def outstanding(self, worker: str) -> list[Lease]:
        """The leases that `worker` has and has not pushed, in the order they were granted."""
        return list(self._outstanding_of[worker].values()) if worker in self._outstanding_of else []

    def take_back(self, leases: Iterable[Lease]) -> None:
        """Return outstanding leases to the queue: their worker is gone, or never received them."""
        for lease in leases:
            self._remove(lease)
            self._state[lease.batch] = _State.PENDING
            self._attempts[lease.batch] = lease.attempt + 1
            heapq.heappush(self._returned, lease.batch)

    def give_up(self, leases: Iterable[Lease]) -> None:
        """Return outstanding leases to the queue: their workers, which may still push them, are too late."""
        for lease in leases:
            self.take_back([lease])
            self._late[lease.worker, lease.slot] = lease

    def account(self) -> BatchAccount:
        """The counts of the run, recounted from the state of every batch."""
        standing = {state: self._state.count(state) for state in _State}
        due = self.batches - self._fresh + len(self._returned)
        accounted = due + len(self._outstanding) + standing[_State.ACCEPTED] + self._counts.applied
        unfinished = self.batches - standing[_State.APPLIED]
        return replace(self._counts, unfinished=unfinished, lost=self.batches - accounted)

    def _remove(self, lease: Lease) -> None:
        del self._outstanding[lease.batch]
        held = self._outstanding_of[lease.worker]
        del held[lease.batch]
        if not held:
            del self._outstanding_of[lease.worker]

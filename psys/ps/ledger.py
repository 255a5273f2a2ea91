"""The finite list of batches of a run, each leased to one worker and its gradient counted exactly once."""

import heapq
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from psys.config import Config


class Lease(NamedTuple):
    """One batch handed to one worker. `attempt` tells a re-issued lease from the one that was taken back."""

    batch: int  # position in the run: epoch * batches_per_epoch + index
    attempt: int
    worker: str
    version: int  # version of the parameters that were read with it
    slot: int  # which of the worker's places for a gradient this one will stand in


class Receipt(Enum):
    """What the ledger says of a pushed lease.

    ACCEPTED   the first gradient for this batch: it will be applied
    DUPLICATE  a gradient of this batch was accepted before (a retry, or a re-issued lease was faster): not applied
    EXPIRED    the lease was taken back from a worker given up for dead, and the batch is due again: not applied
    DAMAGED    the gradient has a NaN or an infinity, and the batch is due again: not applied
    """

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    EXPIRED = "expired"
    DAMAGED = "damaged"


class _State(IntEnum):
    PENDING = 0
    LEASED = 1
    ACCEPTED = 2
    APPLIED = 3


@dataclass
class Proof:
    """The ledger's account of a run, in batches; `lost` counts those that are nowhere to be found and must be 0.

    `duplicates`, `expired` and `damaged` are pushes that were refused (see Receipt); a batch whose lease came back is
    `reissued`.
    """

    batches: int
    leased: int = 0
    applied: int = 0
    reissued: int = 0
    duplicates: int = 0
    expired: int = 0
    damaged: int = 0
    unfinished: int = 0
    lost: int = 0


class LedgerState(Config):
    """What of a ledger goes into a checkpoint. Batches that were out, or accepted and not applied, are due again."""

    applied: tuple[tuple[NonNegativeInt, NonNegativeInt], ...]
    """stretches of batches, [first, last), ascending"""
    fresh: NonNegativeInt
    """the first batch that was never leased"""
    attempts: dict[NonNegativeInt, PositiveInt]
    """of batches leased and not applied: the attempt of the next lease"""
    counts: dict[Literal["leased", "reissued", "duplicates", "expired", "damaged"], NonNegativeInt]


class Ledger:
    """Leases batches in order, takes back those of the dead, and counts what became of each.

    A run is `epochs` passes over `samples`, each in ceil(samples / batch_size) batches; the last may be smaller.
    """

    def __init__(self, epochs: int, samples: int, batch_size: int) -> None:
        if min(epochs, samples, batch_size) < 1:
            raise ValueError(f"a run needs epochs, samples and batch_size >= 1, got {epochs}, {samples}, {batch_size}")
        self.samples, self.batch_size = samples, batch_size
        self.batches_per_epoch = -(-samples // batch_size)
        self.batches = epochs * self.batches_per_epoch
        self._state = bytearray(self.batches)
        self._fresh = 0
        self._returned: list[int] = []
        self._outstanding: dict[int, Lease] = {}
        self._attempts: dict[int, int] = {}
        self._counts = Proof(self.batches)

    def restore(self, state: LedgerState) -> None:
        """Take up, as a new ledger of the same run, what another had come to. Raises ValueError if it cannot be."""
        ends = [end for stretch in state.applied for end in stretch]
        if ends != sorted(set(ends)) or state.fresh > self.batches or max(ends, default=0) > state.fresh:
            raise ValueError(f"the ledger's stretches of applied batches do not fit a run of {self.batches} batches")
        for first, last in state.applied:
            self._state[first:last] = bytes([_State.APPLIED]) * (last - first)
        self._fresh = state.fresh
        self._returned = [batch for batch in range(self._fresh) if self._state[batch] == _State.PENDING]
        if set(state.attempts) != set(self._returned):
            raise ValueError("the ledger's attempts are not those of the batches it has leased and not applied")
        self._attempts = dict(state.attempts)
        applied = self._state.count(_State.APPLIED)
        self._counts = Proof(self.batches, applied=applied, **state.counts)

    def state(self) -> LedgerState:
        """For a checkpoint."""
        leased = self._state[: self._fresh]
        stretches = [found.span() for found in re.finditer(bytes([_State.APPLIED]) + b"+", leased)]
        gaps = pairwise([0, *(edge for stretch in stretches for edge in stretch), self._fresh])
        out = [batch for first, last in list(gaps)[::2] for batch in range(first, last)]
        attempts = {batch: self._attempts.get(batch, 0) + (self._state[batch] != _State.PENDING) for batch in out}
        counts = {
            name: getattr(self._counts, name) for name in ("leased", "reissued", "duplicates", "expired", "damaged")
        }
        return LedgerState(applied=tuple(stretches), fresh=self._fresh, attempts=attempts, counts=counts)

    @property
    def exhausted(self) -> bool:
        """No batch is waiting to be leased (some may still be out)."""
        return self._fresh == self.batches and not self._returned

    @property
    def finished(self) -> bool:
        """Every batch of the run has been applied."""
        return self._counts.applied == self.batches

    @property
    def epochs_done(self) -> float:
        """Batches applied, in epochs."""
        return self._counts.applied / self.batches_per_epoch

    def size(self, batch: int) -> int:
        """Samples in `batch`."""
        index = batch % self.batches_per_epoch
        return min(self.batch_size, self.samples - index * self.batch_size)

    def lease(self, worker: str, version: int, slot: int) -> Lease:
        """Hand out the earliest batch that is due. Raises LookupError if `exhausted`."""
        if self._returned:
            batch = heapq.heappop(self._returned)
        elif self._fresh < self.batches:
            batch, self._fresh = self._fresh, self._fresh + 1
        else:
            raise LookupError("no batch is due")
        lease = Lease(batch, self._attempts.get(batch, 0), worker, version, slot)
        self._state[batch] = _State.LEASED
        self._outstanding[batch] = lease
        self._counts.leased += 1
        self._counts.reissued += lease.attempt > 0
        return lease

    def accept(self, lease: Lease, finite: bool = True) -> Receipt:
        """Judge a pushed lease; only an ACCEPTED one may, and must, be applied later. `finite`: its gradient is."""
        if self._outstanding.get(lease.batch) == lease:
            if not finite:
                self.take_back([lease])
                self._counts.damaged += 1
                return Receipt.DAMAGED
            del self._outstanding[lease.batch]
            self._state[lease.batch] = _State.ACCEPTED
            return Receipt.ACCEPTED
        if self._state[lease.batch] in (_State.ACCEPTED, _State.APPLIED):
            self._counts.duplicates += 1
            return Receipt.DUPLICATE
        self._counts.expired += 1
        return Receipt.EXPIRED

    def apply(self, lease: Lease) -> None:
        """Note that the accepted gradient of `lease` is in the parameters now."""
        assert self._state[lease.batch] == _State.ACCEPTED, f"batch {lease.batch} applied without being accepted"
        self._state[lease.batch] = _State.APPLIED
        self._attempts.pop(lease.batch, None)
        self._counts.applied += 1

    def outstanding(self, worker: str) -> list[Lease]:
        """The leases that `worker` has and has not pushed."""
        return [lease for lease in self._outstanding.values() if lease.worker == worker]

    def take_back(self, leases: Iterable[Lease]) -> None:
        """Return outstanding leases to the queue: their worker is gone, or has never heard of them."""
        for lease in leases:
            del self._outstanding[lease.batch]
            self._state[lease.batch] = _State.PENDING
            self._attempts[lease.batch] = lease.attempt + 1
            heapq.heappush(self._returned, lease.batch)

    def proof(self) -> Proof:
        """The account of the run, recounted from the state of every batch."""
        standing = {state: self._state.count(state) for state in _State}
        due = self.batches - self._fresh + len(self._returned)
        accounted = due + len(self._outstanding) + standing[_State.ACCEPTED] + self._counts.applied
        unfinished = self.batches - standing[_State.APPLIED]
        return replace(self._counts, unfinished=unfinished, lost=self.batches - accounted)


def samples_of(batch: int, samples: int, batch_size: int, seed: int) -> Tensor:
    """Indices of the samples in `batch`: its stretch of the epoch's permutation. Returns (<= batch_size,) int64."""
    epoch, index = divmod(batch, -(-samples // batch_size))
    return _epoch_order(samples, seed, epoch)[index * batch_size : (index + 1) * batch_size]


@lru_cache(maxsize=2)
def _epoch_order(samples: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(batch_seed(seed, epoch, stream=0)))


def batch_seed(seed: int, position: int, stream: int) -> int:
    """A seed for the random draws at one place of the run, so that they do not depend on which worker makes them.

    `stream` keeps apart draws that share a position (0: the epoch's permutation, 1: the batch's augmentation).
    """
    return (seed * 1_000_003 + position) * 2 + stream

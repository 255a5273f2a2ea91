"""The parameter server's decisions in one pure machine: events of workers in, updates and grants out."""

from typing import NamedTuple

from torch import Tensor

from psys.ps.ledger import Lease, Ledger, Receipt
from psys.ps.policy import Policy
from psys.ps.schedule import ScheduleConfig, learning_rate
from psys.ps.store import Contribution, ParameterStore


class Update(NamedTuple):
    """One new version and what it was made of."""

    version: int
    leases: tuple[Lease, ...]
    staleness: tuple[int, ...]  # of each lease: updates made between its reading and this one
    learning_rate: float
    epochs_done: float  # after this update


class Decision(NamedTuple):
    """What follows from an event, in order: versions made, workers answered (a lease, or None: the run is over)."""

    updates: list[Update]
    grants: dict[str, Lease | None]


class Coordinator:
    """Drives ledger, policy and store by events; the same machine serves real and simulated clusters.

    Nobody starts before `awaited` workers have joined, so that a synchronous run is the same each time. A worker is
    either computing one lease or waiting; it is answered in a later Decision if not in the one its request caused.
    """

    def __init__(
        self, ledger: Ledger, policy: Policy, store: ParameterStore, schedule: ScheduleConfig, epochs: int, awaited: int
    ) -> None:
        self.ledger, self.store = ledger, store
        self._policy, self._schedule, self._epochs = policy, schedule, epochs
        self._awaited = awaited
        self._stopping = False
        self._waiting: dict[str, None] = {}  # in order of asking
        self._members: set[str] = set()
        self._pushed: dict[Lease, Contribution] = {}

    @property
    def members(self) -> frozenset[str]:
        """Workers taking part."""
        return frozenset(self._members)

    @property
    def over(self) -> bool:
        """No lease will be granted any more: every batch is applied, or the run was stopped."""
        return self._stopping or self.ledger.finished

    def request(self, worker: str) -> Decision:
        """`worker` (joining if unknown) wants a batch and the parameters to compute it with.

        One that asks while it holds a lease has not heard of it (its answer was lost): that batch is due again.
        """
        self._join(worker)
        if unheard := self.ledger.take_back(worker):
            self._policy.leave(worker, unheard)
            self._policy.join(worker)
        self._waiting[worker] = None
        return self._decide()

    def push(self, lease: Lease, gradient: Tensor, statistics: Tensor) -> tuple[Receipt, Decision]:
        """The gradient of `lease` has come. Applied now, later with its round, or never (see Receipt)."""
        receipt = self.ledger.accept(lease)
        if receipt is Receipt.ACCEPTED:
            self._pushed[lease] = Contribution(gradient, statistics, self.ledger.size(lease.batch))
            self._policy.arrive(lease)
        return receipt, self._decide()

    def leave(self, worker: str) -> Decision:
        """`worker` is gone, by its own will or not; its outstanding lease becomes due again."""
        if worker in self._members:
            self._members.remove(worker)
            self._waiting.pop(worker, None)
            self._policy.leave(worker, self.ledger.take_back(worker))
        return self._decide()

    def stop_waiting(self) -> Decision:
        """Start with the workers that are here: the others are late or will not come."""
        self._awaited = 0
        return self._decide()

    def stop(self) -> Decision:
        """Grant no further lease; what is being computed is still accepted and applied."""
        self._stopping = True
        return self._decide()

    def _join(self, worker: str) -> None:
        if worker not in self._members:
            self._members.add(worker)
            self._policy.join(worker)

    def _decide(self) -> Decision:
        updates: list[Update] = []
        while due := self._policy.due(self._stopping or self.ledger.exhausted):
            updates.append(self._apply(due))
        if len(self._members) >= self._awaited:
            self._awaited = 0
        grants = {worker: self._grant(worker) for worker in list(self._waiting) if self._grantable(worker)}
        return Decision(updates, grants)

    def _grantable(self, worker: str) -> bool:
        if self.over:
            return True
        return not self._awaited and not self.ledger.exhausted and self._policy.admits(worker)

    def _grant(self, worker: str) -> Lease | None:
        del self._waiting[worker]
        if self.over:
            return None
        lease = self.ledger.lease(worker, self.store.version)
        self._policy.begin(lease)
        return lease

    def _apply(self, leases: list[Lease]) -> Update:
        read_before = self.store.version
        rate = learning_rate(self._schedule, self.ledger.epochs_done, self._epochs)
        contributions = [self._pushed.pop(lease) for lease in leases]
        # An update speaks for its share of the workers; with all of them, or a single one, it replaces the statistics.
        share = min(1.0, len(leases) / max(1, len(self._members)))
        self.store.apply(contributions, rate, share)
        for lease in leases:
            self.ledger.apply(lease)
        staleness = tuple(read_before - lease.version for lease in leases)
        return Update(self.store.version, tuple(leases), staleness, rate, self.ledger.epochs_done)

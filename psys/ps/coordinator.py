"""The parameter server's decisions in one pure machine: events of workers in, updates and grants out."""

from collections.abc import Collection
from typing import NamedTuple

from psys.ps.ledger import Lease, Ledger, Receipt
from psys.ps.policy import Policy
from psys.ps.schedule import ScheduleConfig, learning_rate
from psys.ps.store import OptimizerConfig


class Update(NamedTuple):
    """One new version and what it is made of: the mean of the leases' gradients, by their shares."""

    version: int
    leases: tuple[Lease, ...]
    shares: tuple[float, ...]  # of the update's samples, for each lease
    staleness: tuple[int, ...]  # of each lease: updates made between its reading and this one
    learning_rate: float
    statistics_share: float  # how far this update moves the running statistics: 1 replaces them
    epochs_done: float  # after this update


class Grant(NamedTuple):
    """The answer to a worker: a lease, to be computed on the last version made, moved as far as its way is known.

    No lease: the run is over, or, for a worker that still holds one, there is none to have ahead of it.
    """

    lease: Lease | None
    drift: float = 0.0  # of that version, in momentum vectors (see OptimizerConfig.drift)
    reach: float = 0.0  # of the gradient that the worker has under way, in such gradients (see OptimizerConfig.reach)


class Decision(NamedTuple):
    """What follows from an event, in order: versions made, workers answered."""

    updates: list[Update]
    grants: dict[str, Grant]


class Coordinator:
    """Drives ledger and policy by events; the same machine serves real and simulated clusters.

    Nobody starts before `awaited` workers have joined, so that a synchronous run is the same each time. A worker asks
    for one lease at a time, and is answered in a later Decision if not in the one its request caused. Each worker has
    `slots` places, each for what a lease reads and then for its gradient: a slot is leased again only when its gradient
    is applied or given up, and the worker holds no lease of it. A run that is resumed goes on at `version`, with its
    ledger.
    """

    def __init__(
        self,
        ledger: Ledger,
        policy: Policy,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        epochs: int,
        awaited: int,
        slots: int,
        version: int = 0,
    ) -> None:
        self.ledger, self.version = ledger, version
        self._policy, self._optimizer, self._schedule, self._epochs = policy, optimizer, schedule, epochs
        self._awaited, self._slots = awaited, range(slots)
        self._stopping = False
        self._waiting: dict[str, set[int]] = {}  # in order of asking: slots of the leases that each holds
        self._members: set[str] = set()
        self._pushed: set[Lease] = set()

    @property
    def members(self) -> frozenset[str]:
        """Workers taking part."""
        return frozenset(self._members)

    @property
    def over(self) -> bool:
        """No lease will be granted any more: every batch is applied, or the run was stopped."""
        return self._stopping or self.ledger.finished

    def request(self, worker: str, holding: Collection[Lease] = ()) -> Decision:
        """`worker` (joining if unknown) wants a batch, beside those it holds and has not pushed.

        A lease it has and does not name was lost on the way to it: that batch is due again. One that it names and does
        not have, for it was taken for dead meanwhile, it may still be computing.
        """
        self._join(worker)
        if unheard := [lease for lease in self.ledger.outstanding(worker) if lease not in holding]:
            self.ledger.take_back(unheard)
            self._forget(worker, unheard)
        self._waiting[worker] = {lease.slot for lease in holding}
        return self._decide()

    def push(self, lease: Lease, finite: bool = True) -> tuple[Receipt, Decision]:
        """The gradient of `lease` has come. Applied now, later with its round, or never (see Receipt)."""
        receipt = self.ledger.accept(lease, finite)
        if receipt is Receipt.ACCEPTED:
            self._pushed.add(lease)
            self._policy.arrive(lease)
        elif receipt is Receipt.DAMAGED:
            self._forget(lease.worker, [lease])
        return receipt, self._decide()

    def leave(self, worker: str) -> Decision:
        """`worker` is gone, by its own will or not; its outstanding leases become due again."""
        if worker in self._members:
            self._members.remove(worker)
            self._waiting.pop(worker, None)
            abandoned = self.ledger.outstanding(worker)
            self.ledger.take_back(abandoned)
            self._policy.leave(worker, abandoned)
        return self._decide()

    def stop_waiting(self) -> Decision:
        """Start with the workers that are here: the others are late or will not come."""
        self._awaited = 0
        return self._decide()

    def stop(self) -> Decision:
        """Grant no further lease; what is being computed is still accepted and applied."""
        self._stopping = True
        return self._decide()

    def _forget(self, worker: str, leases: list[Lease]) -> None:
        """That `worker`, which stays, began these."""
        self._policy.leave(worker, leases)
        self._policy.join(worker)

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
        grants: dict[str, Grant] = {}
        for worker in list(self._waiting):
            self._answer(worker, grants)
        return Decision(updates, grants)

    def _answer(self, worker: str, grants: dict[str, Grant]) -> None:
        held = self.ledger.outstanding(worker)
        if self.over or (self.ledger.exhausted and held):
            grants[worker] = Grant(None)
        else:
            taken = {lease.slot for lease in (*held, *self._pushed) if lease.worker == worker}
            free = [slot for slot in self._slots if slot not in taken | self._waiting[worker]]
            if self._awaited or self.ledger.exhausted or not free or not self._policy.admits(worker):
                return
            lease = self.ledger.lease(worker, self.version, free[0])
            self._policy.begin(lease)
            grants[worker] = self._looking_ahead(lease, under_way=len(taken), computing=bool(held))
        del self._waiting[worker]

    def _looking_ahead(self, lease: Lease, under_way: int, computing: bool) -> Grant:
        """For a worker with so many gradients that are not applied yet, the last of which it may be `computing`."""
        rate = learning_rate(self._schedule, self.ledger.epochs_done, self._epochs)
        period = self._policy.period()
        # A round is more than one worker's gradient, and should not depend on who computed which.
        reach = self._optimizer.reach(period) if computing and period == len(self._members) else 0.0
        return Grant(lease, rate * self._optimizer.drift((under_way + 1) * period - 1), rate * reach)

    def _apply(self, leases: list[Lease]) -> Update:
        rate = learning_rate(self._schedule, self.ledger.epochs_done, self._epochs)
        # An update speaks for its share of the workers; with all of them, or a single one, it replaces the statistics.
        statistics_share = min(1.0, len(leases) / max(1, len(self._members)))
        sizes = [self.ledger.size(lease.batch) for lease in leases]
        for lease in leases:
            self._pushed.remove(lease)
            self.ledger.apply(lease)
        staleness = tuple(self.version - lease.version for lease in leases)
        self.version += 1
        return Update(
            self.version,
            tuple(leases),
            tuple(size / sum(sizes) for size in sizes),
            staleness,
            rate,
            statistics_share,
            self.ledger.epochs_done,
        )

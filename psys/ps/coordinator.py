"""Which batch a worker computes next, and which gradients make the next update: ledger, policy and slots together."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from psys.ps.compensation import NO_COMPENSATION, CompensationConfig
from psys.ps.ledger import Ledger, Receipt
from psys.ps.messages import Grant, Lease, Update
from psys.ps.optimizer import OptimizerConfig
from psys.ps.policy import Policy
from psys.ps.schedule import ScheduleConfig, learning_rate


class Wait(Enum):
    """Why a worker that asked for a batch has no answer yet."""

    START = "waits for the workers that start together"
    BATCH = "waits for a batch: all that are left are with other workers"
    SLOT = "waits for its own gradients to be applied: it has no free slot"
    POLICY = "waits for other workers' gradients, as the mode demands"


@dataclass
class Decision:
    """What follows from an event, in order: leases taken back, versions made, workers answered."""

    receipt: Receipt | None = None  # of the gradient that was handed in
    returned: list[Lease] = field(default_factory=list)
    late: list[Lease] = field(default_factory=list)  # given up: taken back from workers that are too late
    updates: list[Update] = field(default_factory=list)
    grants: dict[str, Grant] = field(default_factory=dict)


@dataclass
class _Request:
    """A worker without an answer: the slots of the leases it is still holding, and why it waits."""

    number: int  # in order of asking
    held_slots: set[int]
    late: bool  # whether the gradient handed in was
    wait: Wait | None = None


class Coordinator:
    """Drives ledger and policy by events; real and simulated clusters use the same machine.

    No worker starts before `awaited` workers have joined, so that a synchronous run is the same every time. A worker
    asks for one lease at a time, and is answered in a later Decision if not in the Decision of its own request. Each
    worker has `slots` slots, each for the parameters of a lease and then for its gradient: a slot is leased again only
    when its gradient was applied or refused and the worker holds no lease of it. A resumed run continues at `version`.

    An event takes constant time, or time in proportion to the workers it wakes.
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
        compensation: CompensationConfig = NO_COMPENSATION,
    ) -> None:
        self.ledger, self.version = ledger, version
        self._policy, self._compensation = policy.advanced(ledger.epochs_done), compensation
        self._optimizer, self._schedule, self._epochs = optimizer, schedule, epochs
        self._awaited, self._slots = awaited, range(slots)
        self._stopping = False
        self._members: set[str] = set()
        self._requests: dict[str, _Request] = {}
        self._requested = 0
        self._blocked: set[str] = set()  # requests that the policy does not admit
        self._unapplied: defaultdict[str, set[Lease]] = defaultdict(set)  # accepted and not applied, by worker
        self._conditions = self._present_conditions()

    @property
    def members(self) -> Collection[str]:
        """Workers taking part."""
        return self._members

    @property
    def over(self) -> bool:
        """No lease will be granted any more: every batch is applied, or the run was stopped."""
        return self._stopping or self.ledger.finished

    def rate(self, gradients: float) -> float:
        """The learning rate of the next update if it has the mean of so many gradients."""
        return learning_rate(self._schedule, self.ledger.epochs_done, self._epochs, gradients)

    def waiting(self) -> Mapping[str, Wait]:
        """Why each worker without an answer waits."""
        return {worker: request.wait for worker, request in self._requests.items() if request.wait}

    def has_unapplied(self, worker: str) -> bool:
        """Whether a gradient in the worker's buffer was accepted and is not yet part of an update."""
        return worker in self._unapplied

    def push_pull(
        self, worker: str, pushed: Lease | None, finite: bool = True, holding: Collection[Lease] = ()
    ) -> Decision:
        """`worker`, which joins if unknown, hands in the gradient of `pushed` (None: none) and asks for a batch.

        `finite`: whether the gradient is. `holding`: leases it has and has not pushed. A lease that the worker has by
        the ledger and does not name never reached it: that batch is due again. A lease that it names and does not have
        by the ledger, because the worker was taken for dead meanwhile, keeps its slot.
        """
        decision = Decision()
        if pushed is not None:
            outstanding = pushed in self.ledger.outstanding(pushed.worker)
            if outstanding and finite and not self._policy.accepts(pushed, self.version):
                self._give_up([pushed], decision)
            decision.receipt = self.ledger.accept(pushed, finite)
            if decision.receipt is Receipt.ACCEPTED:
                self._unapplied[pushed.worker].add(pushed)
                self._policy.arrive(pushed)
            elif decision.receipt is Receipt.DAMAGED:
                self._restart(pushed.worker, [pushed])
        if worker not in self._members:
            self._members.add(worker)
            self._policy.join(worker)
        decision.returned = [lease for lease in self.ledger.outstanding(worker) if lease not in holding]
        if decision.returned:
            self.ledger.take_back(decision.returned)
            self._restart(worker, decision.returned)
        held_slots, late = {lease.slot for lease in holding}, decision.receipt is Receipt.LATE
        if worker in self._requests:  # a call that is repeated keeps its place
            self._requests[worker].held_slots, self._requests[worker].late = held_slots, late
        else:
            self._requested += 1
            self._requests[worker] = _Request(self._requested, held_slots, late)
        return self._decide(decision, worker)

    def leave(self, worker: str) -> Decision:
        """`worker` is gone, by itself or not; its outstanding leases become due again."""
        decision = Decision()
        if worker in self._members:
            self._members.remove(worker)
            self._requests.pop(worker, None)
            self._blocked.discard(worker)
            decision.returned = self.ledger.outstanding(worker)
            self.ledger.take_back(decision.returned)
            self._policy.leave(worker, decision.returned)
        return self._decide(decision)

    def stop_waiting(self) -> Decision:
        """Start with the workers that have joined: the others are late or will not come."""
        self._awaited = 0
        return self._decide(Decision())

    def stop(self) -> Decision:
        """Grant no further lease; what is being computed is still applied, unless the policy gives it up as late."""
        self._stopping = True
        return self._decide(Decision())

    def _give_up(self, leases: Sequence[Lease], decision: Decision) -> None:
        self.ledger.give_up(leases)
        decision.late += leases

    def _restart(self, worker: str, leases: list[Lease]) -> None:
        """The policy sees `worker`, which stays, begin anew without these leases."""
        self._policy.leave(worker, leases)
        self._policy.join(worker)

    def _present_conditions(self) -> tuple[bool, bool, bool]:
        """What decides over every request alike."""
        return self.over, self.ledger.exhausted, self._awaited > 0

    def _decide(self, decision: Decision, *asking: str) -> Decision:
        candidates = set(asking)
        while due := self._policy.due(self._stopping or self.ledger.exhausted):
            decision.updates.append(self._apply(due.leases))
            self._give_up(due.late, decision)
            candidates.update(lease.worker for lease in due.leases)  # their slots are free again
            before, self._policy = self._policy, self._policy.advanced(self.ledger.epochs_done)
            if before is not self._policy:
                candidates |= self._blocked
        if self._policy.opened():
            candidates |= self._blocked
        if len(self._members) >= self._awaited:
            self._awaited = 0
        returned = decision.returned or decision.late or decision.receipt is Receipt.DAMAGED
        if returned or self._present_conditions() != self._conditions:
            candidates.update(self._requests)
            self._conditions = self._present_conditions()
        self._answer(candidates, decision.grants)
        # The answers may have leased the last batch, and the workers that wait with a lease in hand are to know it.
        while (conditions := self._present_conditions()) != self._conditions:
            self._conditions = conditions
            self._answer(self._requests, decision.grants)
        return decision

    def _answer(self, candidates: Iterable[str], grants: dict[str, Grant]) -> None:
        """Grant leases to those of the candidates that may start, in order of asking."""
        requests = [(self._requests[worker].number, worker) for worker in candidates if worker in self._requests]
        for _, worker in sorted(requests):
            answer = self._grant(worker, self._requests[worker].held_slots)
            if isinstance(answer, Grant):
                grants[worker] = answer._replace(late=self._requests.pop(worker).late)
            else:
                self._requests[worker].wait = answer
            if answer is Wait.POLICY:
                self._blocked.add(worker)
            else:
                self._blocked.discard(worker)

    def _grant(self, worker: str, held_slots: set[int]) -> Grant | Wait:
        answer = self._check(worker, held_slots)
        if not isinstance(answer, int):
            return answer
        held = self.ledger.outstanding(worker)
        under_way = {lease.slot for lease in (*held, *self._unapplied.get(worker, ()))}
        lease = self.ledger.lease(worker, self.version, slot=answer)
        self._policy.begin(lease)
        return self._looking_ahead(lease, len(under_way), computing=bool(held))

    def _check(self, worker: str, held_slots: set[int]) -> int | Grant | Wait:
        """The slot in which the worker may start a batch, or the end of its run, or why it waits. Changes nothing."""
        held = self.ledger.outstanding(worker)
        if self.over or (self.ledger.exhausted and held):
            return Grant(None)
        if self._awaited:
            return Wait.START
        if self.ledger.exhausted:
            return Wait.BATCH
        taken = {lease.slot for lease in (*held, *self._unapplied.get(worker, ()))}
        free = [slot for slot in self._slots if slot not in taken and slot not in held_slots]
        if not free:
            return Wait.SLOT
        return free[0] if self._policy.admits(worker) else Wait.POLICY

    def _looking_ahead(self, lease: Lease, under_way: int, computing: bool) -> Grant:
        """The grant of a worker with `under_way` gradients not applied, the last of which it may be `computing`."""
        period = self._policy.period()
        rate = self.rate(len(self._members) / period)
        # A round has other workers' gradients too, and must not depend on who computed which of them.
        ahead = self._optimizer.gradient_look_ahead(period) if computing and period == len(self._members) else 0.0
        momentum_ahead = self._optimizer.momentum_look_ahead((under_way + 1) * period - 1)
        return Grant(lease, rate * momentum_ahead, rate * ahead, learning_rate=self.rate(1))

    def _apply(self, leases: Sequence[Lease]) -> Update:
        rate, progress = self.rate(len(leases)), self.ledger.epochs_done / self._epochs
        # An update replaces the running statistics as far as its gradients come from all workers, or the only worker.
        statistics_share = min(1.0, len(leases) / max(1, len(self._members)))
        sizes = [self.ledger.size(lease.batch) for lease in leases]
        samples = sum(sizes)
        for lease in leases:
            self.ledger.apply(lease)
            unapplied = self._unapplied[lease.worker]
            unapplied.remove(lease)
            if not unapplied:
                del self._unapplied[lease.worker]
        staleness = tuple(self.version - lease.version for lease in leases)
        self.version += 1
        return Update(
            self.version,
            tuple(leases),
            tuple(size / samples for size in sizes),
            staleness,
            rate,
            statistics_share,
            self.ledger.epochs_done,
            tuple(self._compensation.damping(each, progress) for each in staleness),
        )

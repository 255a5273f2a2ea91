"""The rules of a run as one pure state machine: what happens to the run goes in, what is to be done comes out.

    controller = RunController(rules, membership, coordinator)
    effects = controller.handle(now, PushPull("worker0", None))

Whoever drives the controller carries out the effects: the servers apply `steps` in order, a reply is sent once its step
is applied, `log` is written to the events file. Real clusters (psys.cluster) and runs in one process (psys.simulate)
drive the same controller.
"""

import math
from collections import defaultdict, deque
from collections.abc import Mapping
from operator import mul
from typing import NamedTuple

from psys.ps.coordinator import Coordinator, Decision, Wait
from psys.ps.effects import Effects, Reply, RunEnd, Save
from psys.ps.events import (
    LeasesReturned,
    PushRefused,
    RunDiverged,
    RunEvent,
    SnapshotEvaluated,
    StoppedEarly,
    UpdateApplied,
    WorkerJoined,
    WorkerLeft,
    WorkerSuspected,
)
from psys.ps.ledger import Receipt
from psys.ps.membership import Change, Membership, State
from psys.ps.messages import (
    CheckpointNow,
    Disconnected,
    Evaluated,
    Event,
    Grant,
    Heartbeat,
    Joined,
    Kept,
    Lease,
    Left,
    Push,
    PushPull,
    Reader,
    Step,
    StepApplied,
    Stop,
    Tick,
    Update,
)
from psys.ps.rules import RunRules

MAX_DAMAGED = 3
"""Gradients of one batch that are not finite before the run stops: another attempt would not help."""


class UnknownWorkerError(ValueError):
    """A worker called that was never admitted, or that has left."""


class _Made(NamedTuple):
    """An update under way to the servers."""

    step: int
    update: Update
    pushes: list[Push]


class RunController:
    """All rules of a run. Times are seconds on the caller's monotonic clock.

    Training time runs from the first lease to the last update, and continues at `seconds` from a checkpoint. `saved` is
    the version of the newest snapshot that exists already, `best` the best of the evaluations so far, `patience_from`
    the epochs done when settings last changed: the patience of early stopping begins again there.
    """

    def __init__(
        self,
        rules: RunRules,
        membership: Membership,
        coordinator: Coordinator,
        seconds: float = 0.0,
        saved: int = 0,
        best: Evaluated | None = None,
        patience_from: float = 0.0,
    ) -> None:
        self.best = best
        self._patience_from = patience_from
        self._rules, self._membership, self._coordinator = rules, membership, coordinator
        self._seconds_before = self._applied_seconds = seconds
        self._first_request: float | None = None
        self._first_lease: float | None = None
        # Workers without an answer, the leases they are holding, and since when they ask.
        self._asking: dict[str, tuple[tuple[Lease, ...], float]] = {}
        self._accepted: dict[Lease, Push] = {}
        self._damaged: defaultdict[int, list[Lease]] = defaultdict(list)  # leases of damaged gradients, by batch
        self._gone: set[str] = set()  # workers whose buffers are to be released
        self._steps = 0
        self._applied = -1  # number of the newest step that all servers have applied
        self._unlogged: deque[RunEvent | _Made] = deque()
        self._saves: deque[Save] = deque()
        self._snapshot_version, self._snapshot_epochs = saved, coordinator.ledger.epochs_done
        self._checkpoint_version = coordinator.version
        self._checkpoint_time: float | None = None
        self._over_since: float | None = None
        self._last_step: int | None = None
        self._ended = False
        self._failure: str | None = None
        self._stopped_early = False

    @property
    def over(self) -> bool:
        """No batch will be granted any more."""
        return self._coordinator.over

    @property
    def workers(self) -> int:
        """Workers taking part."""
        return len(self._coordinator.members)

    def state(self, worker: str) -> State | None:
        """The worker's state; None: no worker of that name was ever admitted."""
        return self._membership.state(worker)

    def waiting(self) -> Mapping[str, Wait]:
        """Why each worker without an answer waits."""
        return self._coordinator.waiting()

    def train_seconds(self, now: float) -> float:
        """Training time so far."""
        return self._seconds_before + (now - self._first_lease if self._first_lease is not None else 0.0)

    def handle(self, now: float, event: Event) -> Effects:
        """Take in one event. Raises UnknownWorkerError, having changed nothing, for a call of an unknown worker."""
        effects = Effects()
        match event:
            case PushPull(worker, push, holding):
                self._push_pull(now, worker, push, holding, effects)
            case StepApplied(number):
                self._applied = number
            case Heartbeat(worker):
                self._heartbeat(now, worker, effects)
            case Tick():
                self._tick(now, effects)
            case Joined(worker):
                self._follow(now, self._membership.admitted(worker, now), effects)
            case Left(worker):
                self._follow(now, self._membership.left(worker), effects)
            case Disconnected(worker):
                self._follow(now, self._membership.disconnected(worker), effects)
            case Stop():
                self._carry_out(now, self._coordinator.stop(), effects)
            case CheckpointNow():
                self._add_step(effects, keep="checkpoint", checkpoint=True)
            case Evaluated():
                self._evaluated(now, event, effects)
        self._release(now, effects)
        self._end_if_over(now, effects)
        return effects

    def _push_pull(
        self, now: float, worker: str, push: Push | None, holding: tuple[Lease, ...], effects: Effects
    ) -> None:
        if self._membership.state(worker) in (None, State.LEFT):
            raise UnknownWorkerError(f"{worker} is not in this run: it was not admitted, or has left")
        if self._ending:  # the last version is being saved: another update would be lost
            effects.replies.append(Reply(worker, Grant(None, stopped=self._unfinished), after=-1))
            return
        if self._first_request is None:
            self._first_request = now
        self._follow(now, self._membership.asked(worker, now), effects)
        _, since = self._asking.get(worker, ((), now))
        self._asking[worker] = holding, since
        finite = push is None or math.isfinite(push.gradient_norm)
        decision = self._coordinator.push_pull(worker, push.lease if push else None, finite, holding)
        if push is not None:
            if decision.receipt is Receipt.ACCEPTED:
                self._accepted[push.lease] = push
            else:
                assert decision.receipt is not None
                self._refuse(now, push, decision.receipt)
        self._carry_out(now, decision, effects)
        if self._failure and not self._coordinator.over:
            self._carry_out(now, self._coordinator.stop(), effects)

    def _refuse(self, now: float, push: Push, receipt: Receipt) -> None:
        lease, seconds = push.lease, self.train_seconds(now)
        times = {name: getattr(push, name) for name in ("compute_seconds", "wait_seconds", "call_seconds")}
        self._unlogged.append(PushRefused(receipt=receipt.value, lease=lease, seconds=seconds, **times))
        if receipt is Receipt.DAMAGED:
            damaged = self._damaged[lease.batch]
            damaged.append(lease)
            if len(damaged) == MAX_DAMAGED and not self._failure:
                self._failure = (
                    f"training diverged: the gradient of batch {lease.batch} was not finite {MAX_DAMAGED} times"
                )
                version = min(each.version for each in damaged)
                self._unlogged.append(RunDiverged(version=version, batch=lease.batch, seconds=seconds))

    def _heartbeat(self, now: float, worker: str, effects: Effects) -> None:
        if self._membership.state(worker) is State.DEAD and worker in self._asking:
            # It was taken for dead while it waited for an answer, and does not ask again by itself.
            self._follow(now, self._membership.asked(worker, now), effects)
            holding, _ = self._asking[worker]
            self._carry_out(now, self._coordinator.push_pull(worker, None, holding=holding), effects)
        else:
            self._follow(now, self._membership.heard(worker, now), effects)

    def _tick(self, now: float, effects: Effects) -> None:
        self._follow(now, self._membership.looked(now), effects)
        if self._first_request is not None and now - self._first_request > self._rules.start_timeout:
            self._carry_out(now, self._coordinator.stop_waiting(), effects)
        if self._checkpoint_due(now):
            self._add_step(effects, keep="checkpoint", checkpoint=True)
            self._checkpoint_time = now

    def _evaluated(self, now: float, evaluated: Evaluated, effects: Effects) -> None:
        version, epochs, loss, accuracy, images = evaluated
        self._unlogged.append(SnapshotEvaluated(version=version, loss=loss, accuracy=accuracy, images=images))
        if self.best is None or evaluated.merit > self.best.merit:
            self.best = evaluated
        patience = self._rules.early_stopping
        without = epochs - max(self.best.epochs, self._patience_from)
        if patience is not None and without >= patience and not self._coordinator.over:
            self._stopped_early = True
            self._unlogged.append(
                StoppedEarly(
                    best_version=self.best.version,
                    best_accuracy=self.best.accuracy,
                    patience=patience,
                    seconds=self.train_seconds(now),
                )
            )
            self._carry_out(now, self._coordinator.stop(), effects)

    def _checkpoint_due(self, now: float) -> bool:
        if self._checkpoint_time is None:
            self._checkpoint_time = now
        made = self._coordinator.version - self._checkpoint_version
        if not made or self._last_step is not None or self._failure:
            return False
        if self._rules.checkpoint_updates is not None:
            return made >= self._rules.checkpoint_updates
        seconds = self._rules.checkpoint_seconds
        return seconds is not None and now - self._checkpoint_time >= seconds

    def _follow(self, now: float, changes: list[Change], effects: Effects) -> None:
        """What a worker's new state means for its leases, its request and its buffer."""
        for worker, state, reason in changes:
            if state in (State.DEAD, State.LEFT):
                self._gone.add(worker)
                if reason != "silent":  # a silent worker may wake up, and waits for the answer then
                    self._asking.pop(worker, None)
                if worker in self._coordinator.members:
                    self._unlogged.append(WorkerLeft(worker=worker, reason=reason, seconds=self.train_seconds(now)))
                self._carry_out(now, self._coordinator.leave(worker), effects)
            elif state is State.SUSPECT:
                self._unlogged.append(WorkerSuspected(worker=worker, seconds=self.train_seconds(now)))
            elif state is State.ACTIVE and reason == "asked":
                self._gone.discard(worker)
                if worker not in self._coordinator.members:
                    self._unlogged.append(WorkerJoined(worker=worker, seconds=self.train_seconds(now)))

    def _carry_out(self, now: float, decision: Decision, effects: Effects) -> None:
        for leases, late in ((decision.returned, False), (decision.late, True)):
            if leases:
                seconds = self.train_seconds(now)
                self._unlogged.append(LeasesReturned(leases=tuple(leases), late=late, seconds=seconds))
        if decision.grants and self._first_lease is None:
            self._first_lease = now
        readers = {
            worker: Reader(grant.lease.slot, grant.momentum_look_ahead)
            for worker, grant in decision.grants.items()
            if grant.lease
        }
        released = self._released() if self._gone else ()
        if decision.updates or readers or released:
            snapshot = bool(decision.updates) and self._snapshot_due(decision.updates[-1])
            self._add_step(effects, decision.updates, readers, released, keep="snapshot" if snapshot else None)
        for worker, grant in decision.grants.items():
            _, since = self._asking.pop(worker)
            if since < now:
                grant = grant._replace(wait_seconds=round(now - since, 6))
            if grant.lease is None:
                grant = grant._replace(stopped=self._unfinished)
            effects.replies.append(Reply(worker, grant, after=self._steps - 1))

    def _released(self) -> tuple[str, ...]:
        """Gone workers whose buffers hold no gradient that is still to be applied."""
        released = tuple(worker for worker in self._gone if not self._coordinator.has_unapplied(worker))
        self._gone.difference_update(released)
        return released

    def _snapshot_due(self, update: Update) -> bool:
        every = self._rules.snapshot_epochs
        before, self._snapshot_epochs = self._snapshot_epochs, update.epochs_done
        return int(update.epochs_done / every) > int(before / every)

    def _add_step(
        self,
        effects: Effects,
        updates: list[Update] | None = None,
        readers: Mapping[str, Reader] | None = None,
        released: tuple[str, ...] = (),
        keep: Kept | None = None,
        checkpoint: bool = False,
    ) -> None:
        number, coordinator = self._steps, self._coordinator
        self._steps += 1
        updates = updates or []
        if self._failure:  # parameters of a training that diverged may be worthless
            keep = None
        for update in updates:
            self._unlogged.append(_Made(number, update, [self._accepted.pop(lease) for lease in update.leases]))
        if keep:
            ledger = coordinator.ledger.state() if checkpoint else None
            snapshot = (keep == "snapshot" or self._ending) and coordinator.version > self._snapshot_version
            if snapshot:
                self._snapshot_version = coordinator.version
            if checkpoint:
                self._checkpoint_version = coordinator.version
            epochs = coordinator.ledger.epochs_done
            self._saves.append(Save(number, coordinator.version, epochs, 0.0, snapshot, ledger))
        effects.steps.append(Step(number, tuple(updates), readers or {}, released, keep))

    @property
    def _ending(self) -> bool:
        return self._last_step is not None

    @property
    def _unfinished(self) -> bool:
        """The run ends with something left to train."""
        return self.over and not (self._coordinator.ledger.finished or self._stopped_early)

    def _release(self, now: float, effects: Effects) -> None:
        """Log events in the order of their decisions, and save states, as far as the steps before are applied."""
        while self._unlogged:
            entry = self._unlogged[0]
            if isinstance(entry, _Made):
                if entry.step > self._applied:
                    break
                self._applied_seconds = self.train_seconds(now)
                entry = self._update_event(entry)
            effects.log.append(entry)
            self._unlogged.popleft()
        while self._saves and self._saves[0].step <= self._applied:
            effects.saves.append(self._saves.popleft()._replace(seconds=self._applied_seconds))

    def _update_event(self, made: _Made) -> UpdateApplied:
        update = made.update
        _, losses, correct, views, norms, compute_seconds, wait_seconds, call_seconds = zip(*made.pushes, strict=True)
        return UpdateApplied(
            version=update.version,
            seconds=round(self._applied_seconds, 4),
            epochs=round(update.epochs_done, 6),
            learning_rate=update.learning_rate,
            batches=tuple(lease.batch for lease in update.leases),
            attempts=tuple(lease.attempt for lease in update.leases),
            workers=tuple(lease.worker for lease in update.leases),
            staleness=update.staleness,
            gradient_norms=norms,
            compute_seconds=compute_seconds,
            wait_seconds=wait_seconds,
            call_seconds=call_seconds,
            loss=round(sum(map(mul, losses, views)) / sum(views), 6),
            accuracy=round(sum(correct) / sum(views), 6),
            images=sum(self._coordinator.ledger.size(lease.batch) for lease in update.leases),
        )

    def _end_if_over(self, now: float, effects: Effects) -> None:
        """After the last batch: wait for the workers to leave, keep the last version unless it diverged, then end."""
        if not self._coordinator.over:
            return
        if self._over_since is None:
            self._over_since = now
        left = not self._coordinator.members or now - self._over_since > self._rules.leave_timeout
        if left and self._last_step is None:
            self._last_step = self._steps
            self._add_step(effects, keep="checkpoint", checkpoint=True)
        elif self._last_step is not None and self._applied >= self._last_step and not self._ended:
            self._ended = True
            effects.end = RunEnd(
                self._coordinator.ledger.account(), self._applied_seconds, self._failure, self._stopped_early
            )

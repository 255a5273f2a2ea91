"""Replays a run from its events: the same gradients of the same leases, computed again, give the same parameters."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import pairwise, zip_longest

from psys.errors import PsysError
from psys.ps.events import (
    LeasesReturned,
    PushRefused,
    RunEnded,
    RunEvent,
    RunStarted,
    UpdateApplied,
    WorkerJoined,
    WorkerLeft,
)
from psys.ps.ledger import LedgerState
from psys.ps.messages import Lease
from psys.run.config import RunConfig
from psys.simulate.in_process import InProcessRun, Saved
from psys.simulate.worker import Workload

Decided = WorkerJoined | WorkerLeft | LeasesReturned | PushRefused | UpdateApplied
"""The events that the run controller logs, in the order of its decisions; suspicions decide nothing."""


def replay(events: Iterable[RunEvent], config: RunConfig, workload: Workload) -> InProcessRun:
    """Make every update of the events again and compare it with its event; returns the run after the last event.

    `config` and `workload` are those of the run that logged the events. The parameters are the same to the bit if torch
    uses as many threads here as in the run's workers.

    Only runs in mode async are replayed: each of their calls is answered at once, so the order of the events determines
    the leases. Raises PsysError for other runs, and naming the first event that differs.
    """
    events = list(events)
    starts = [number for number, event in enumerate(events) if isinstance(event, RunStarted)]
    if config.mode != "async":
        raise PsysError(f"cannot replay a run in mode {config.mode}: the events do not determine the order of calls")
    if starts[:1] != [0]:
        raise PsysError("cannot replay these events: they do not begin with the start of a run")
    if config.prefetch and (len(starts) > 1 or not isinstance(events[-1], RunEnded)):
        raise PsysError("cannot replay a run with prefetch that was killed: the events lack the leases lost with it")
    run = InProcessRun(config, workload, _started_together(events))
    resumed_at = {event.version for event in events if isinstance(event, RunStarted)}
    checkpoints = {0: run.checkpoint()}
    for start, stop in pairwise([*starts, len(events)]):
        if start:
            _resume(run, events[start:stop], checkpoints)
        replayed = _Replay(run, [event for event in events[start:stop] if isinstance(event, Decided)])
        for version in replayed.versions():
            if version in resumed_at:
                checkpoints[version] = run.checkpoint()
    return run


class _Replay:
    """The decisions between one start of the servers and the next."""

    def __init__(self, run: InProcessRun, decided: Sequence[Decided]) -> None:
        self._run, self._decided = run, decided
        self._owners = {lease[:2]: lease.worker for lease in _leases(decided)}
        self._silent: set[str] = set()
        self._compared = len(run.log)  # events of the replay up to here

    def versions(self) -> Iterable[int]:
        """Carry out all decisions; yields each version when it is made. Raises PsysError if an event differs."""
        for event, following in zip_longest(self._decided, self._decided[1:]):
            self._lease_ahead()
            made = self._next_made()
            if made is None:
                self._carry_out(event, following)
                made = self._next_made()
            _compare(event, made)
            if isinstance(event, UpdateApplied):
                yield event.version

    def _next_made(self) -> Decided | None:
        """The next decision of the replay that was not compared yet."""
        while self._compared < len(self._run.log):
            event = self._run.log[self._compared]
            self._compared += 1
            if isinstance(event, Decided):
                return event
        return None

    def _lease_ahead(self) -> None:
        """A worker with prefetch asks for its second lease in a call that no event tells of: once that lease is due."""
        while (due := self._run.ledger.next_due) and (owner := self._owners.get(due)):
            worker = self._run.workers.get(owner)
            if not self._run.config.prefetch or worker is None or not worker.ready:
                return
            if worker.call is None or worker.call.push or worker.call.holding:
                return
            self._run.step(owner)

    def _carry_out(self, event: Decided, following: Decided | None) -> None:
        """Do what the event came from; of a push that `following` refuses, the call joins the worker as well."""
        run = self._run
        match event:
            case UpdateApplied(batches=(batch,), attempts=(attempt,), workers=(worker,)):
                self._push(worker, (batch, attempt))
            case PushRefused(lease=lease):
                self._push(lease.worker, lease[:2], damaged=event.receipt == "damaged")
            case LeasesReturned(leases=(Lease(worker=worker), *_)) if worker in run.workers:
                run.repeat_call(worker)
            case WorkerJoined(worker=worker) if worker not in run.workers:
                run.join(worker)
                run.step(worker)
            case WorkerJoined(worker=worker):
                if isinstance(following, PushRefused) and following.lease.worker == worker:
                    self._push(worker, following.lease[:2])
                elif worker in self._silent:
                    run.heartbeat(worker)
                else:
                    run.repeat_call(worker)
                self._silent.discard(worker)
            case WorkerLeft(worker=worker, reason="left") if worker in run.workers:
                run.leave(worker)
            case WorkerLeft(worker=worker, reason="disconnected") if worker in run.workers:
                run.disconnect(worker)
            case WorkerLeft(worker=worker, reason="silent") if worker in run.workers:
                self._silent.add(worker)
                run.now += 1.01 * run.config.heartbeat_timeout
                for other in run.workers.keys() - self._silent:
                    run.heartbeat(other)
                run.tick()

    def _push(self, name: str, pushed: tuple[int, int], damaged: bool = False) -> None:
        """The worker's call that hands in the gradient of this batch and attempt, for the first time or again."""
        worker = self._run.workers.get(name)
        if worker and worker.call and worker.call.push and worker.call.push.lease[:2] == pushed:
            self._run.repeat_call(name)
            return
        for _ in range(1 + self._run.config.prefetch):
            if worker is None or not worker.ready or name not in self._run.workers:
                return
            self._run.step(name, damaged)
            if worker.call and worker.call.push:
                return


def _compare(event: Decided, made: Decided | None) -> None:
    name = f"update {event.version}" if isinstance(event, UpdateApplied) else f"event '{event.event}' of {event}"
    if made is None or made.event != event.event:
        raise PsysError(f"the replay differs: it came to {made}, and not to {name}")
    for field in fields(event):
        logged, again = getattr(event, field.name), getattr(made, field.name)
        if field.name != "seconds" and logged != again:
            raise PsysError(f"the replay differs in {name}: {field.name} is {again}, and was {logged}")


def _leases(decided: Iterable[Decided]) -> Iterable[Lease]:
    """Every lease that came to an end."""
    for event in decided:
        match event:
            case UpdateApplied():
                for batch, attempt, worker in zip(event.batches, event.attempts, event.workers, strict=True):
                    yield Lease(batch, attempt, worker, version=0, slot=0)
            case PushRefused(receipt="damaged", lease=lease):
                yield lease
            case LeasesReturned(leases=leases):
                yield from leases


def _started_together(events: Sequence[RunEvent]) -> int:
    """The workers present when the first lease was granted: training time began then."""
    workers, start = 0, events[0]
    assert isinstance(start, RunStarted)
    for event in events:
        match event:
            case WorkerJoined(seconds=start.seconds):
                workers += 1
            case WorkerLeft(seconds=start.seconds):
                workers -= 1
            case UpdateApplied() | PushRefused() | LeasesReturned() | WorkerJoined() | WorkerLeft():
                break
    return workers


def _resume(run: InProcessRun, events: Sequence[RunEvent], checkpoints: dict[int, Saved]) -> None:
    """Restart the servers from the version that the run resumed at, with the ledger that it had."""
    start = events[0]
    assert isinstance(start, RunStarted)
    if start.version not in checkpoints:
        raise PsysError(f"cannot replay these events: the run resumed at version {start.version} before it made it")
    save, state = checkpoints[start.version]
    assert save.ledger is not None
    last = [*start.attempts, *(stop - 1 for _, stop in save.ledger.applied)]
    ledger = LedgerState(
        applied=save.ledger.applied, fresh=max(last, default=-1) + 1, attempts=start.attempts, counts=start.counts
    )
    run.workers.clear()
    run.awaited = _started_together(events)
    run.restart(Saved(save._replace(ledger=ledger, seconds=start.seconds), state))

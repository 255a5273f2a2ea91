"""Replays a run from its events: the same gradients of the same leases, computed again, give the same parameters."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import zip_longest

from psys.errors import PsysError
from psys.ps.events import (
    LeasesReturned,
    PushRefused,
    RunDiverged,
    RunEvent,
    RunStarted,
    UpdateApplied,
    WorkerJoined,
    WorkerLeft,
)
from psys.ps.messages import Lease
from psys.run.config import RunConfig
from psys.simulate.in_process import InProcessRun
from psys.simulate.worker import Workload

Decided = WorkerJoined | WorkerLeft | LeasesReturned | PushRefused | RunDiverged | UpdateApplied
"""The events that the run controller logs, in the order of its decisions; suspicions decide nothing."""


def replay(events: Iterable[RunEvent], config: RunConfig, workload: Workload) -> InProcessRun:
    """Make every update of the events again and compare it with its event; returns the run after the last event.

    `config` and `workload` are those of the run that logged the events. The parameters are the same to the bit if torch
    uses as many threads here as in the run's workers.

    Only runs in mode async from the start, without prefetch, whose servers did not resume, are replayed: each of their
    calls is answered at once, so the order of the events determines the leases. Raises PsysError for other runs, and
    naming the first event that differs.
    """
    events = list(events)
    if config.mode != "async" or config.prefetch or config.sync_epochs:
        others = "with prefetch" if config.prefetch else "with epochs in mode sync"
        kind = others if config.mode == "async" else f"in mode {config.mode}"
        raise PsysError(f"cannot replay a run {kind}: the events do not determine the order of its calls")
    if [number for number, event in enumerate(events) if isinstance(event, RunStarted)] != [0]:
        raise PsysError("cannot replay these events: they are not those of one start of a run")
    run = InProcessRun(config, workload, _started_together(events))
    _Replay(run, [event for event in events if isinstance(event, Decided)]).carry_out_all()
    return run


class _Replay:
    """The decisions of a run, carried out again."""

    def __init__(self, run: InProcessRun, decided: Sequence[Decided]) -> None:
        self._run, self._decided = run, decided
        self._silent: set[str] = set()
        self._compared = len(run.log)  # events of the replay up to here

    def carry_out_all(self) -> None:
        """Raises PsysError naming the first event that differs."""
        for event, following in zip_longest(self._decided, self._decided[1:]):
            made = self._next_made()
            if made is None:
                self._carry_out(event, following)
                made = self._next_made()
            _compare(event, made)

    def _next_made(self) -> Decided | None:
        """The next decision of the replay that was not compared yet."""
        while self._compared < len(self._run.log):
            event = self._run.log[self._compared]
            self._compared += 1
            if isinstance(event, Decided):
                return event
        return None

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
        if worker and worker.ready:
            self._run.step(name, damaged)


def _compare(event: Decided, made: Decided | None) -> None:
    name = f"update {event.version}" if isinstance(event, UpdateApplied) else f"event '{event.event}' of {event}"
    if made is None or made.event != event.event:
        raise PsysError(f"the replay differs: it came to {made}, and not to {name}")
    for field in fields(event):
        logged, again = getattr(event, field.name), getattr(made, field.name)
        if field.compare and field.name != "seconds" and logged != again:
            raise PsysError(f"the replay differs in {name}: {field.name} is {again}, and was {logged}")


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

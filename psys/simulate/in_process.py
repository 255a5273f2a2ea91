"""A run in one process, without threads and without a clock: the controller, slices and workers of a real run.

    run = InProcessRun(config, workload_of(config, store), awaited=2)
    run.join(), run.join()
    run.run()

Whoever drives the run decides what happens next, and advances `now`. Same decisions in the same order, same bits.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from psys.compute.flat import FlatModel
from psys.ps.coordinator import Wait
from psys.ps.effects import RunEnd, Save
from psys.ps.events import CheckpointSaved, RunEnded, RunEvent, RunStarted, SnapshotSaved
from psys.ps.messages import (
    CheckpointNow,
    Disconnected,
    Evaluated,
    Event,
    Heartbeat,
    Joined,
    Left,
    PushPull,
    StepApplied,
    Stop,
    Tick,
)
from psys.ps.slots import Slot
from psys.ps.store import SliceState, refitted
from psys.run.assembly import initial_slice, layout_of, run_controller
from psys.run.checkpoint import concatenate_states, state_of_slice
from psys.run.config import RunConfig
from psys.simulate.worker import Worker, Workload


class Saved(NamedTuple):
    """A snapshot or checkpoint: a value here, a file in a real run."""

    save: Save
    state: SliceState  # of the whole vector


class InProcessRun:
    """Every event is handled, and all that follows from it is carried out, before the method returns.

    `awaited` workers start together. `now`: seconds, advanced by the caller. `log`, `saves` and `end` are what a real
    run writes to disk.
    """

    def __init__(self, config: RunConfig, workload: Workload, awaited: int) -> None:
        self.config, self._workload, self.awaited = config, workload, awaited
        self.now = 0.0
        self.log: list[RunEvent] = []
        self.saves: list[Saved] = []
        self.end: RunEnd | None = None
        self.workers: dict[str, Worker] = {}  # alive, the one that acted last at the end
        self._names = 0
        self._start(None)

    @property
    def version(self) -> int:
        """Updates applied."""
        return self.slices[0].store.version

    def state(self) -> SliceState:
        """A copy of the whole state of all servers."""
        return concatenate_states([part.store.state() for part in self.slices])

    def waiting(self) -> Mapping[str, Wait]:
        """Why each worker without an answer waits."""
        return self._controller.waiting()

    def ready(self) -> list[str]:
        """Workers that can go on, the one that has not acted for longest first."""
        return [name for name, worker in self.workers.items() if worker.ready]

    # What workers do.

    def join(self, name: str | None = None) -> str:
        """A new worker is admitted; by default under the next free name, which is returned."""
        return self._admit(Worker(self.config, self._workload, self.ledger.plan.samples), name)

    def step(self, name: str, damaged: bool = False) -> None:
        """The worker reads the reply to its last call, computes, and calls; it leaves if the run is over for it.

        `damaged`: the gradient that it computes is NaN.
        """
        worker = self.workers[name] = self.workers.pop(name)
        call = worker.step(damaged)
        if call is None:
            self.leave(name)
        else:
            self._handle(PushPull(name, *call))

    def repeat_call(self, name: str) -> None:
        """The worker makes its last call again: the reply was lost, or did not come in time."""
        worker = self.workers[name]
        assert worker.call is not None, f"{name} has not called yet"
        worker.reply = None
        self._handle(PushPull(name, *worker.call))

    def heartbeat(self, name: str) -> None:
        """The worker gives a sign of life."""
        self._handle(Heartbeat(name))

    def leave(self, name: str) -> None:
        """The worker leaves the run in order."""
        self._remove(name)
        self._handle(Left(name))

    def kill(self, name: str) -> None:
        """The worker's process dies, and its connection breaks."""
        self._remove(name)
        self._handle(Disconnected(name))

    def disconnect(self, name: str) -> None:
        """The connection to the worker breaks; the worker goes on."""
        self._handle(Disconnected(name))

    def reconnect(self, name: str) -> None:
        """The worker is admitted again, and repeats the call that it waits in."""
        self._handle(Joined(name))
        if not self.workers[name].ready:
            self.repeat_call(name)

    # What happens to the servers.

    def tick(self) -> None:
        """Let the controller look at the time."""
        self._handle(Tick())

    def stop(self) -> None:
        """End the run early."""
        self._handle(Stop())

    def checkpoint(self) -> Saved:
        """Save a checkpoint now."""
        self._handle(CheckpointNow())
        return self.saves[-1]

    def evaluate(self, version: int, accuracy: float, loss: float = 1.0) -> None:
        """The snapshot of a version turns out to have that accuracy on one held-out image."""
        epochs = next(saved.save.epochs for saved in self.saves if saved.save.version == version)
        self._handle(Evaluated(version, epochs, loss, accuracy, images=1))

    def restart(self, checkpoint: Saved | None) -> None:
        """All servers die and resume from a checkpoint, or from the start; the workers join again under new names."""
        workers, self.workers = list(self.workers.values()), {}
        self._start(checkpoint)
        for worker in workers:
            worker.begin()
            self._admit(worker)

    def resume(self, checkpoint: Saved | None, config: RunConfig, workload: Workload) -> None:
        """All processes end, and the run continues from a checkpoint with other settings; new workers may join it."""
        self.config, self._workload, self.workers = config, workload, {}
        self._start(checkpoint)

    def run(self, choose: Callable[[list[str]], str] = itemgetter(0), updates: int | None = None) -> None:
        """Drive the run to its end, or to version `updates`.

        `choose` names one of the workers that can go on, by default in turn. Raises RuntimeError if there are none.
        """
        while self.end is None and (updates is None or self.version < updates):
            ready = self.ready()
            if not ready:
                raise RuntimeError(f"no worker can go on: {dict(self.waiting())}")
            self.step(choose(ready))
            self.tick()

    def _start(self, checkpoint: Saved | None) -> None:
        config, self.end = self.config, None
        model = FlatModel(self._workload.module)
        parts = layout_of(config, model).slices
        self.slices = [initial_slice(config, model, number) for number in range(len(parts))]
        self.ledger = self._workload.ledger()
        version, seconds = 0, 0.0
        if checkpoint is not None:
            assert checkpoint.save.ledger is not None, "a snapshot is no checkpoint"
            version, seconds = checkpoint.save.version, checkpoint.save.seconds
            self.ledger.restore(checkpoint.save.ledger)
            saved = refitted(checkpoint.state, config.state_names())
            for number, part in enumerate(parts):
                self.slices[number].store.restore(state_of_slice(saved, part, number))
        self._buffers = [_Buffers() for _ in parts]
        snapshots = [saved.save.version for saved in self.saves if saved.save.snapshot]
        newest = max((snapshot for snapshot in snapshots if snapshot <= version), default=0)
        self._controller = run_controller(config, self.ledger, self.awaited, version, seconds, newest)
        state = self.ledger.state()
        self.log.append(
            RunStarted(
                event="resume" if self.log else "start",
                store=self._workload.store,
                version=version,
                seconds=seconds,
                batches=self.ledger.batches,
                counts={str(name): count for name, count in state.counts.items()},
                attempts=state.attempts,
            )
        )

    def _admit(self, worker: Worker, name: str | None = None) -> str:
        if name is None:
            name, self._names = f"worker{self._names}", self._names + 1
        self.workers[name] = worker
        for buffers in self._buffers:
            buffers.attach(name, worker.model.buffer.slots)
        self._handle(Joined(name))
        return name

    def _remove(self, name: str) -> None:
        del self.workers[name]
        for buffers in self._buffers:
            buffers.detach(name)

    def _handle(self, event: Event) -> None:
        events = deque([event])
        while events:
            effects = self._controller.handle(self.now, events.popleft())
            for part, buffers in zip(self.slices, self._buffers, strict=True):
                part.apply(effects.steps, buffers)
            self.log += effects.log
            for save in effects.saves:
                self._save(save)
            for worker, grant, _ in effects.replies:
                self.workers[worker].reply = grant
            if effects.steps:
                events.append(StepApplied(effects.steps[-1].number))
            if effects.end:
                self.end = effects.end
                self.log.append(RunEnded(seconds=effects.end.seconds, **vars(effects.end.account)))

    def _save(self, save: Save) -> None:
        state = concatenate_states([part.kept(save.step) for part in self.slices])
        for part in self.slices:
            part.forget(save.step)
        self.saves.append(Saved(save, state))
        if save.snapshot:
            self.log.append(SnapshotSaved(version=save.version, epochs=save.epochs, seconds=save.seconds))
        if save.ledger:
            self.log.append(CheckpointSaved(version=save.version, seconds=save.seconds, took=0.0))


class _Buffers:
    """The workers' buffers as one server has them: a released buffer is opened again when its worker reads."""

    def __init__(self) -> None:
        self._attached: dict[str, Sequence[Slot]] = {}
        self._open: dict[str, Sequence[Slot]] = {}

    def attach(self, worker: str, slots: Sequence[Slot]) -> None:
        self._attached[worker] = self._open[worker] = slots

    def detach(self, worker: str) -> None:
        """The worker is gone; what it pushed before is read until the buffer is released."""
        del self._attached[worker]

    def gradients(self, worker: str) -> Sequence[Slot]:
        return self._open[worker]

    def parameters(self, worker: str) -> Sequence[Slot]:
        return self._open.setdefault(worker, self._attached[worker])

    def release(self, worker: str) -> None:
        self._open.pop(worker, None)

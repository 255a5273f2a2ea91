"""Server 0: every call is an event for the run controller, decided under one lock and applied outside it."""

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from torch.futures import Future, collect_all

from psys.cluster.evaluation import SnapshotEvaluation
from psys.cluster.saving import Saver
from psys.config import validate
from psys.errors import LostServerError, PsysError
from psys.ps.controller import RunController, UnknownWorkerError
from psys.ps.effects import RunEnd, Save
from psys.ps.events import FaultInjected, JoinRefused, RunEnded, RunEvent, UpdateApplied
from psys.ps.membership import State
from psys.ps.messages import (
    Disconnected,
    Event,
    Grant,
    Heartbeat,
    Joined,
    Lease,
    Left,
    Push,
    PushPull,
    Step,
    StepApplied,
    Stop,
    Tick,
)
from psys.run.faults import Fault
from psys.run.status import Status
from psys.transport.join_messages import JoinRequest, JoinResponse
from psys.transport.protocol import RunRejectedError, ShardControl
from psys.transport.registration import Registration

_TICK_SECONDS = 0.2
_STEPS_TOGETHER = 4  # applied in one go; more would delay replies more than they save (docs/experiments.md)


class _Answer(NamedTuple):
    """A grant for a worker, to be sent once the step of that number is applied."""

    after: int
    future: "Future[Grant]"
    grant: Grant


class _UnderWay(NamedTuple):
    """Steps up to a number, and the servers that are applying them."""

    number: int
    servers: "list[Future[None]]"


class Server:
    """A CoordinatorService and RendezvousHandler over a RunController.

    Every event is decided under one lock, and the steps that follow are applied outside it, in their order: heartbeats
    wait for no step. The thread of a push_pull that decided on a step applies it, unless steps are being applied; all
    other steps are applied by the background thread. `shards` are all servers, this one first; it may grow until `run`.
    The thread in `run` writes events, snapshots and checkpoints: no worker waits for a disk.
    """

    def __init__(
        self,
        controller: RunController,
        registration: Registration,
        shards: Sequence[ShardControl],
        saver: Saver,
        evaluation: SnapshotEvaluation,
        status: Status,
    ) -> None:
        self._controller, self._registration, self._shards = controller, registration, shards
        self._saver, self._evaluation, self._status = saver, evaluation, status
        self._lock = threading.Condition()
        self._futures: dict[str, Future[Grant]] = {}
        self._steps: list[Step] = []  # decided, not yet being applied
        self._applying = False  # a thread is applying steps, or about to
        self._under_way: deque[_UnderWay] = deque()
        self._applied = -1
        self._answers: deque[_Answer] = deque()
        self._log: list[RunEvent] = []
        self._saves: list[Save] = []
        self._end: RunEnd | None = None
        self._failure: Exception | None = None
        self._closed = False  # nothing is applied any more
        self._background = ThreadPoolExecutor(1, "psys-apply")

    # RendezvousHandler: called from the rendezvous server's threads.

    def admit(self, request: JoinRequest) -> JoinResponse:
        response = self._registration.admit(request)
        if request.role == "worker":
            worker = f"worker{response.number}"
            with self._lock:
                if self._controller.state(worker) is State.LEFT:
                    raise PsysError(f"{worker} has left this run: join as a new worker")
                self._report(Joined(worker))
        return response

    def server_ready(self, number: int, address: str) -> None:
        self._registration.server_ready(number, address)

    def heartbeat(self, worker: str) -> None:
        self._report(Heartbeat(worker))

    def fault_injected(self, worker: str, fields: dict[str, Any]) -> None:
        fault = validate(Fault, fields, where=f"the fault that {worker} announces")
        with self._lock:
            seconds = self._controller.train_seconds(time.monotonic())
            self._log.append(
                FaultInjected(worker=worker, step=fault.step, kind=fault.kind, duration=fault.seconds, seconds=seconds)
            )

    def left(self, worker: str) -> None:
        self._report(Left(worker))

    def disconnected(self, name: str) -> None:
        if name.startswith("server"):
            replaceable = self._registration.server_left(int(name.removeprefix("server")))
            with self._lock:
                over = self._controller.over
            if not over and not replaceable:
                self._fail(LostServerError(f"lost {name} and its part of the parameters"))
        else:
            self._report(Disconnected(name))

    def join_refused(self, address: str, reason: str) -> None:
        with self._lock:
            seconds = self._controller.train_seconds(time.monotonic())
            self._log.append(JoinRefused(address=address, reason=reason, seconds=seconds))

    # CoordinatorService: called from the transport's threads.

    def push_pull(self, worker: str, push: Push | None, holding: tuple[Lease, ...]) -> "Future[Grant]":
        future: Future[Grant] = Future()
        applying = False
        with self._guarded():
            before = self._futures.get(worker)
            self._futures[worker] = future
            try:
                self._handle(PushPull(worker, push, holding))
            except UnknownWorkerError as error:
                del self._futures[worker]
                if before is not None:
                    self._futures[worker] = before
                raise RunRejectedError(str(error)) from None
            applying = self._begin_applying()
        if applying:
            self._apply()
        else:
            self._send_answers()
        return future

    # The server's own thread.

    def run(self, stopped: Callable[[Status], bool], show: Callable[[Status], None]) -> RunEnd:
        """Serve until the run is over and its workers have left; `show` gets the status several times a second.

        Once `stopped(status)` is true no batch is granted any more; what is being computed is still applied. Raises
        LostServerError if a server is gone, PsysError if the run ended for what the user must mend.
        """
        try:
            while True:
                with self._lock:
                    if not (self._failure or self._end):
                        self._lock.wait(_TICK_SECONDS)
                    failure, end = self._failure, self._end
                    over = self._controller.over
                if failure:
                    raise failure
                if end:
                    break
                if not over and stopped(self._status):
                    self._report(Stop())
                self._report(Tick())
                for evaluated in self._evaluation.finished():
                    self._status.evaluated = max(self._status.evaluated or evaluated, evaluated)  # the later version
                    self._report(evaluated)
                self._write()
                show(self._status)
        finally:
            with self._lock:
                self._closed = True
            self._background.shutdown()
            self._write_log()
        self._write()
        show(self._status)
        self._saver.log([RunEnded(seconds=end.seconds, **vars(end.account))])
        if end.failure:
            raise PsysError(end.failure)
        return end

    def _write(self) -> None:
        """Write down what has happened."""
        self._write_log()
        with self._lock:
            saves, self._saves = self._saves, []
            self._status.workers, self._status.best = self._controller.workers, self._controller.best
            self._status.waiting = Counter(wait.value for wait in self._controller.waiting().values())
        for save in saves:
            self._saver.save(save, self._registration.workers_named)

    def _write_log(self) -> None:
        with self._lock:
            log, self._log = self._log, []
        self._saver.log(log)
        for event in log:
            if isinstance(event, UpdateApplied):
                self._status.add(event)

    # Deciding, under the lock.

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """The lock. An error under it leaves the run's state in doubt: it ends the run, and is raised in `run`."""
        with self._lock:
            try:
                yield
            except RunRejectedError:
                raise
            except Exception as error:
                self._fail(error)

    def _handle(self, event: Event) -> None:
        effects = self._controller.handle(time.monotonic(), event)
        self._steps += effects.steps
        self._log += effects.log
        for worker, grant, after in effects.replies:
            self._answers.append(_Answer(after, self._futures.pop(worker), grant))
        if effects.saves or effects.end:
            self._saves += effects.saves
            self._end = self._end or effects.end
            self._lock.notify_all()

    def _report(self, event: Event) -> None:
        """Take in an event from a thread that has other duties than to apply steps."""
        with self._guarded():
            self._handle(event)
            self._apply_in_background()

    def _begin_applying(self) -> bool:
        """Claim the applying of steps: if true, the caller must call `_apply`, or leave it to the background."""
        begin = bool(self._steps) and not (self._applying or self._failure or self._closed)
        self._applying = self._applying or begin
        return begin

    def _apply_in_background(self) -> None:
        """Leave to the background thread what there is to apply or to send."""
        if self._begin_applying():
            self._background.submit(self._apply)
        elif not self._closed and self._answers and self._answers[0].after <= self._applied:
            self._background.submit(self._send_answers)

    # Applying, outside the lock.

    def _apply(self) -> None:
        """Apply up to `_STEPS_TOGETHER` decided steps; the background thread applies the rest, and later ones."""
        with self._lock:
            steps, self._steps = self._steps[:_STEPS_TOGETHER], self._steps[_STEPS_TOGETHER:]
        try:
            # This server's slice comes last: its `advance` blocks while the other servers work.
            servers = [shard.advance(steps) for shard in reversed(self._shards)]
        except Exception as error:
            self._fail(error)
            return
        number, pending = steps[-1].number, False
        with self._guarded():
            self._applying = False
            self._under_way.append(_UnderWay(number, servers))
            self._finish_steps()
            pending = self._applied < number
            if self._begin_applying():
                self._background.submit(self._apply)
        self._send_answers()
        if pending:
            collect_all(servers).add_done_callback(self._servers_done)

    def _servers_done(self, _: "Future[Any]") -> None:
        with self._guarded():
            self._finish_steps()
            self._apply_in_background()
        self._send_answers()

    def _send_answers(self) -> None:
        answers: list[_Answer] = []
        with self._lock:
            while self._answers and self._answers[0].after <= self._applied and not self._failure:
                answers.append(self._answers.popleft())
        for answer in answers:
            answer.future.set_result(answer.grant)

    def _finish_steps(self) -> None:
        """Take in the steps, in order, that every server has applied."""
        while self._under_way and all(server.done() for server in self._under_way[0].servers):
            number, servers = self._under_way.popleft()
            for server in servers:
                try:
                    server.value()
                except Exception as error:  # its slice is in doubt
                    raise LostServerError(f"lost a server and its part of the parameters: {error}") from None
            self._applied = number
            self._handle(StepApplied(number))

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._failure = self._failure or error
            self._lock.notify_all()

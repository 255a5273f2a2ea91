"""Server 0: workers' calls drive the coordinator under one lock; what it decides, all servers do and the log tells."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch.futures import Future, collect_all

from psys.cluster.config import RunConfig
from psys.cluster.progress import Status
from psys.cluster.transport import Advance, Push, ShardControl, Welcome, Work
from psys.errors import PsysError
from psys.events import EventLog
from psys.ps.coordinator import Coordinator, Decision, Update
from psys.ps.ledger import Lease, Proof, Receipt
from psys.ps.membership import Membership
from psys.ps.store import Snapshot

_LATECOMERS_SECONDS = 60.0  # how long the workers that came wait for those that were expected
_FAREWELL_SECONDS = 10.0  # how long a server whose run is over waits for workers to say good-bye
_TICK_SECONDS = 0.2


class Stamped(NamedTuple):
    """A snapshot to be evaluated later, stamped with when it was reached; a slice from each server, in order."""

    slices: list[Snapshot]
    version: int
    epochs: float
    train_seconds: float


class _Made(NamedTuple):
    """An update, the training seconds it was made at, and what was pushed for it, in the order of its leases."""

    update: Update
    seconds: float
    pushes: list[Push]


class _Answer(NamedTuple):
    """What a worker hears once every server has done its part."""

    waiting: "Future[Work]"
    work: Work
    done: "list[Future[None]]"


class Server:
    """A `CoordinatorService` over one Coordinator and the servers that hold the parameters, its own shard first.

    Training time runs from the first lease to the last update. `save` is called from `run` with what is to be
    evaluated later: every `snapshot_epochs` and at the end. Events written: join, update, refused, leave, end.
    """

    def __init__(
        self,
        config: RunConfig,
        store_hash: str,
        coordinator: Coordinator,
        shards: Sequence[ShardControl],
        events: EventLog,
        save: Callable[[Stamped], None],
    ) -> None:
        self._settings, self._store_hash = config.model_dump_json(), store_hash
        self._snapshot_epochs = config.snapshot_epochs
        self._coordinator, self._shards, self._events, self._save = coordinator, shards, events, save
        self._membership = Membership(config.heartbeat_timeout)
        self._lock = threading.Condition()
        self._waiting: dict[str, Future[Work]] = {}
        self._answers: list[_Answer] = []
        self._steps = 0
        self._gone: set[str] = set()  # workers whose lanes are to be released
        self._accepted: dict[Lease, Push] = {}
        self._unlogged: list[_Made | tuple[str, dict[str, Any]]] = []  # updates, other events by name, in order
        self._last: _Made | None = None
        self._unsaved: list[tuple[list[Future[Snapshot]], Stamped]] = []
        self._stamped_version = 0
        self._failure: Exception | None = None
        self._first_call: float | None = None  # monotonic seconds, as is the next
        self._first_lease: float | None = None
        self._status = Status(config.mode, config.epochs)

    # The CoordinatorService: called from RPC threads.

    def hello(self) -> Welcome:
        return Welcome(self._settings, self._store_hash)

    def push_pull(self, worker: str, push: Push | None, holding: tuple[Lease, ...]) -> "Future[Work]":
        answer: Future[Work] = Future()
        with self._guarded():
            now = time.monotonic()
            self._membership.heard(worker, now)
            self._first_call = self._first_call or now
            taken = self._take(push) if push else Decision([], {})
            self._waiting[worker] = answer
            asked = self._enlist(worker, holding)
            if asked.updates:  # not for those whom the push alone has let go on
                self._carry_out(taken)
                taken = Decision([], {})
            self._carry_out(Decision(taken.updates + asked.updates, {**taken.grants, **asked.grants}))
        self._send_answers()
        return answer

    def beat(self, worker: str) -> None:
        with self._guarded():
            self._membership.heard(worker, time.monotonic())
            if worker in self._waiting and worker not in self._coordinator.members:
                self._carry_out(self._enlist(worker, ()))  # it was taken for dead while it waited
        self._send_answers()

    def leave(self, worker: str) -> None:
        with self._guarded():
            self._waiting.pop(worker, None)
            self._drop(worker, "left")
        self._send_answers()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """The lock; what is raised under it leaves the books in doubt, so it ends the run instead of one worker."""
        with self._lock:
            try:
                yield
            except Exception as error:
                self._failure = self._failure or error
                self._lock.notify_all()
                raise

    # The server's own thread.

    def run(self, stopped: Callable[[Status], bool], tick: Callable[[Status], None]) -> Proof:
        """Serve until the run is over and the workers have gone; `tick` sees the status several times a second.

        Once `stopped(status)` is true no batch is granted any more; what is being computed is still applied.
        Raises whatever an answer to a worker failed with, and OSError for a full disk.
        """
        try:
            return self._run(stopped, tick)
        finally:
            self.flush()

    def _run(self, stopped: Callable[[Status], bool], tick: Callable[[Status], None]) -> Proof:
        over_since: float | None = None
        while True:
            with self._lock:
                self._lock.wait(_TICK_SECONDS)
                if self._failure:
                    raise self._failure
                now = time.monotonic()
                self._look_after(now, stopped(self._status))
                if self._coordinator.over and over_since is None:
                    over_since = now
                ended = over_since is not None and (
                    not self._coordinator.members or now - over_since > _FAREWELL_SECONDS
                )
                if ended:
                    self._stamp()
                unsaved, self._unsaved = self._unsaved, []
                self._status.workers = len(self._coordinator.members)
            self._send_answers()
            self.flush()
            while unsaved:
                self._save_slices(*unsaved.pop(0))  # so that no vector is kept until the next one is due
            tick(self._status)
            if ended:
                break
        proof = self._coordinator.ledger.proof()
        self._events.write("end", seconds=self._status.train_seconds, **vars(proof))
        return proof

    def _save_slices(self, slices: "list[Future[Snapshot]]", stamped: Stamped) -> None:
        try:
            taken = [part.wait() for part in slices]
        except RuntimeError as error:
            raise _lost(error) from None
        self._save(stamped._replace(slices=taken))

    def _look_after(self, now: float, stopped: bool) -> None:
        for name in self._membership.silent(now):
            self._drop(name, "silent")
        if self._first_call is not None and now - self._first_call > _LATECOMERS_SECONDS:
            self._carry_out(self._coordinator.stop_waiting())
        if stopped and not self._coordinator.over:
            self._carry_out(self._coordinator.stop())

    def _train_seconds(self) -> float:
        return 0.0 if self._first_lease is None else time.monotonic() - self._first_lease

    def _take(self, push: Push) -> Decision:
        receipt, decision = self._coordinator.push(push.lease)
        if receipt is Receipt.ACCEPTED:
            self._accepted[push.lease] = push
        else:
            self._note("refused", receipt=receipt.value, lease=push.lease)
        return decision

    def _enlist(self, worker: str, holding: tuple[Lease, ...]) -> Decision:
        if worker not in self._coordinator.members:
            self._gone.discard(worker)
            self._note("join", worker=worker)
        return self._coordinator.request(worker, holding)

    def _drop(self, worker: str, reason: str) -> None:
        self._membership.forget(worker)
        self._gone.add(worker)
        if worker in self._coordinator.members:
            self._note("leave", worker=worker, reason=reason)
            self._carry_out(self._coordinator.leave(worker))
        self._lock.notify_all()

    def _carry_out(self, decision: Decision) -> None:
        done = self._advance(decision)
        before = self._snapshots_due()
        for update in decision.updates:
            pushes = [self._accepted.pop(lease) for lease in update.leases]
            self._last = _Made(update, self._train_seconds(), pushes)
            self._unlogged.append(self._last)
        if self._snapshots_due() > before:
            self._stamp()
        if decision.grants:
            self._first_lease = self._first_lease or time.monotonic()
        for worker, lease in decision.grants.items():
            self._answers.append(_Answer(self._waiting.pop(worker), Work(lease), done))

    def _advance(self, decision: Decision) -> "list[Future[None]]":
        readers = tuple(worker for worker, lease in decision.grants.items() if lease is not None)
        # A gradient is needed until an update of this step has it: those of the next step are decided already.
        applied = {lease for update in decision.updates for lease in update.leases}
        released = tuple(self._gone - {lease.worker for lease in self._accepted.keys() - applied})
        self._gone.difference_update(released)
        if not (decision.updates or readers or released):
            return []
        step = Advance(self._steps, tuple(decision.updates), readers, released)
        self._steps += 1
        # Its own slice last, for the other servers work meanwhile.
        done = [shard.advance(step) for shard in reversed(self._shards)]
        for each in done:
            each.add_done_callback(self._check)
        return done

    def _send_answers(self) -> None:
        # Outside the lock: whoever is told may call again at once.
        with self._lock:
            answers, self._answers = self._answers, []
        for answer in answers:
            if all(done.done() for done in answer.done):
                self._tell(answer)
            else:
                collect_all(answer.done).add_done_callback(partial(self._tell, answer))

    def _tell(self, answer: _Answer, all_done: object = None) -> None:
        for done in answer.done:
            self._check(done)
        if not self._failure:
            answer.waiting.set_result(answer.work)

    def _check(self, done: "Future[None]") -> None:
        """If a server did not do its part, its slice is in doubt: the run ends."""
        try:
            done.value()
        except Exception as error:
            with self._lock:
                self._failure = self._failure or _lost(error)
                self._lock.notify_all()

    def _note(self, event: str, **fields: Any) -> None:
        self._unlogged.append((event, {**fields, "seconds": self._train_seconds()}))

    def flush(self) -> None:
        """Write down what has happened: in the server's own thread, for no worker should wait for a diary."""
        with self._lock:
            unlogged, self._unlogged = self._unlogged, []
        for each in unlogged:
            if isinstance(each, _Made):
                self._write_update(each)
            else:
                self._events.write(each[0], **each[1])

    def _write_update(self, made: _Made) -> None:
        update, seconds, pushes = made
        views = sum(push.views for push in pushes)
        loss = sum(push.loss * push.views for push in pushes) / views
        accuracy = sum(push.correct for push in pushes) / views
        images = sum(self._coordinator.ledger.size(lease.batch) for lease in update.leases)
        self._events.write(
            "update",
            version=update.version,
            seconds=round(seconds, 4),
            epochs=round(update.epochs_done, 6),
            learning_rate=update.learning_rate,
            batches=[lease.batch for lease in update.leases],
            workers=[lease.worker for lease in update.leases],
            staleness=update.staleness,
            images=images,
            loss=round(loss, 6),
            accuracy=round(accuracy, 6),
        )
        self._status.add(update, images, seconds, loss, accuracy)

    def _snapshots_due(self) -> int:
        return int(self._last.update.epochs_done / self._snapshot_epochs) if self._last else 0

    def _stamp(self) -> None:
        if self._last and self._last.update.version > self._stamped_version:
            update, seconds, _ = self._last
            self._stamped_version = update.version
            slices = [shard.snapshot() for shard in self._shards]
            self._unsaved.append((slices, Stamped([], update.version, update.epochs_done, seconds)))


def _lost(error: Exception) -> PsysError:
    lines = str(error).split(" (this error originated")[0].splitlines()
    # What was raised on another server comes behind a line that names it.
    reason = next((line for line in lines if not line.startswith("On WorkerInfo")), type(error).__name__)
    return PsysError(f"lost a server and its part of the parameters: {reason}")

"""Server 0: workers' calls drive the coordinator under one lock; what it decides, all servers do and the log tells."""

import contextlib
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.futures import Future, collect_all

from psys.cluster.progress import Status
from psys.cluster.records import Answer, Made, Reached, Request, Stamped, lost, waited
from psys.compute.device import return_freed_memory
from psys.errors import PsysError
from psys.ps.coordinator import Coordinator, Decision, Grant, Update
from psys.ps.ledger import Lease, Proof, Receipt
from psys.ps.membership import Change, Membership, State
from psys.ps.store import Snapshot, StoreState
from psys.run.checkpoint import Books, Checkpoints, joined
from psys.run.config import RunConfig
from psys.run.events import EventLog
from psys.transport.protocol import Advance, Push, Reader, ShardControl
from psys.transport.registration import Reception
from psys.transport.rendezvous import Admission, Knock

_LATECOMERS_SECONDS = 60.0  # how long the workers that came wait for those that were expected
_FAREWELL_SECONDS = 10.0  # how long a server whose run is over waits for workers to say good-bye
_TICK_SECONDS = 0.2
_TOGETHER = 4  # decisions carried out in one go: of more, workers wait for longer than it saves (benchmarks.wire)
_DAMAGED = 3  # gradients of one batch that are not finite, before the run stops: more would not be


class Server:
    """A `CoordinatorService`, and the door's `Host`, over one Coordinator and the servers that hold the parameters,
    its own shard first.

    Training time runs from the first lease to the last update, and goes on with `seconds` from a checkpoint. `save` is
    called from `run` with what is to be evaluated later: every `snapshot_epochs` and at the end, what is newer than
    version `saved`. Events written: join, suspect, leave, update, returned, refused, fault, visitor, checkpoint, end.
    """

    def __init__(
        self,
        config: RunConfig,
        reception: Reception,
        coordinator: Coordinator,
        shards: Sequence[ShardControl],
        events: EventLog,
        save: Callable[[Stamped], None],
        checkpoints: Checkpoints,
        seconds: float = 0.0,
        saved: int = 0,
    ) -> None:
        self._config, self._reception, self._shards = config, reception, shards
        self._coordinator, self._events, self._save, self._checkpoints = coordinator, events, save, checkpoints
        self._membership = Membership(config.heartbeat_timeout)
        self._lock = threading.Condition()
        self._waiting: dict[str, Request] = {}
        self._due: list[Decision] = []  # not carried out yet
        self._done: list[Future[None]] = []  # the servers' parts of what was, for those who wait for an answer
        self._answers: list[Answer] = []
        self._steps = 0
        self._gone: set[str] = set()  # workers whose lanes are to be released
        self._accepted: dict[Lease, Push] = {}
        self._damaged: Counter[int] = Counter()  # by batch
        self._unlogged: list[Made | tuple[str, dict[str, Any]]] = []  # updates, other events by name
        self._unsaved: list[tuple[list[Future[Snapshot]], Stamped]] = []
        self._stamped_version = saved
        self._reached = Reached(coordinator.version, coordinator.ledger.epochs_done, seconds)
        self._checkpointed, self._checkpoint_time = coordinator.version, time.monotonic()
        self._failure: Exception | None = None
        self._ending: PsysError | None = None  # why the run stops before its end, with everything saved
        self._first_call: float | None = None  # monotonic seconds, as is the next
        self._first_lease: float | None = None
        self._seconds_before = seconds
        epochs_done = coordinator.ledger.epochs_done
        self._status = Status(config.mode, config.epochs, 0, epochs_done, 0, seconds, seconds)

    # The door's Host: called from its threads.

    def admit(self, knock: Knock) -> Admission:
        admission = self._reception.admit(knock)
        if knock.role == "worker":
            if self._membership.state(f"worker{admission.number}") is State.LEFT:
                raise PsysError(f"worker{admission.number} has left this run: come as a new one")
            with self._guarded():
                self._follow(self._membership.admitted(f"worker{admission.number}", time.monotonic()))
            self.settle()
        return admission

    def ready(self, server: int, address: str) -> None:
        self._reception.ready(server, address)

    def beat(self, worker: str) -> None:
        with self._guarded():
            now = time.monotonic()
            if self._membership.state(worker) is State.DEAD and worker in self._waiting:
                # It was taken for dead while it waited for an answer.
                self._enlist(worker, self._waiting[worker].holding, now, Decision([], {}))
            else:
                self._follow(self._membership.heard(worker, now))
        self.settle()

    def injected(self, worker: str, fault: dict[str, Any]) -> None:
        with self._lock:
            self._note("fault", worker=worker, **fault)

    def leave(self, worker: str) -> None:
        with self._guarded():
            self._follow(self._membership.left(worker))
        self.settle()

    def lost(self, name: str) -> None:
        with self._guarded():
            if name.startswith("server") and not self._coordinator.over:
                self._failure = self._failure or lost(ConnectionError(f"{name} has gone"))
                self._lock.notify_all()
            self._follow(self._membership.broken(name))
        self.settle()

    def refused(self, address: str, reason: str) -> None:
        with self._lock:
            self._note("visitor", address=address, refused=reason)

    # The CoordinatorService: called from RPC threads.

    def push_pull(self, worker: str, push: Push | None, holding: tuple[Lease, ...]) -> "Future[Grant]":
        answer: Future[Grant] = Future()
        if self._membership.state(worker) in (None, State.LEFT):
            raise PsysError(f"{worker} is not in this run: it did not come through the door")
        with self._guarded():
            now = time.monotonic()
            self._first_call = self._first_call or now
            taken = self._take(push) if push else Decision([], {})
            self._waiting[worker] = Request(answer, holding)
            self._enlist(worker, holding, now, taken)
            enough = len(self._due) >= _TOGETHER
        if enough:
            self.settle()
        return answer

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
            with self._guarded():
                self._lock.wait(_TICK_SECONDS)
                if self._failure:
                    raise self._failure
                now = time.monotonic()
                self._look_after(now, stopped(self._status) or self._ending is not None)
                self._advance()
                if self._coordinator.over and over_since is None:
                    over_since = now
                ended = over_since is not None and (
                    not self._coordinator.members or now - over_since > _FAREWELL_SECONDS
                )
                if ended:
                    self._stamp()
                unsaved, self._unsaved = self._unsaved, []
                checkpoint = self._begin_checkpoint() if ended or self._checkpoint_due(now) else None
                self._status.workers = len(self._coordinator.members)
            self.settle()
            self.flush()
            saving = bool(unsaved or checkpoint)
            while unsaved:
                self._save_slices(*unsaved.pop(0))  # so that no vector is kept until the next one is due
            if checkpoint:
                self._save_checkpoint(*checkpoint)
                checkpoint = None
            if saving:
                return_freed_memory()
            tick(self._status)
            if ended:
                break
        proof = self._coordinator.ledger.proof()
        self._events.write("end", seconds=self._status.train_seconds, **vars(proof))
        if self._ending:
            raise self._ending
        return proof

    def _checkpoint_due(self, now: float) -> bool:
        if self._coordinator.version == self._checkpointed:
            return False
        count, unit = self._config.checkpoint_interval()
        passed = now - self._checkpoint_time if unit == "s" else self._coordinator.version - self._checkpointed
        return passed >= count

    def _begin_checkpoint(self) -> "tuple[Books, list[Future[StoreState]]]":
        """Books and slices of the same version: no step can come between them."""
        coordinator = self._coordinator
        self._checkpointed, self._checkpoint_time = coordinator.version, time.monotonic()
        books = Books(
            version=coordinator.version,
            train_seconds=self._reached.seconds,
            names=self._reception.named,
            ledger=coordinator.ledger.state(),
        )
        return books, [shard.state() for shard in self._shards]

    def _save_checkpoint(self, books: Books, slices: "list[Future[StoreState]]") -> None:
        began = time.monotonic()
        parts = waited(slices)
        assert {part.version for part in parts} == {books.version}
        try:
            self._events.sync()  # a run that goes on from here can prove all before
            self._checkpoints.save(books, joined(parts))
        except OSError as error:  # the run goes on: the next may succeed, and the one before is still there
            print(f"psys: cannot write a checkpoint: {error}", file=sys.stderr, flush=True)
            self._events.write("checkpoint", version=books.version, failed=str(error))
        else:
            took = round(time.monotonic() - began, 4)
            self._events.write("checkpoint", version=books.version, seconds=books.train_seconds, took=took)

    def _save_slices(self, slices: "list[Future[Snapshot]]", stamped: Stamped) -> None:
        self._save(stamped._replace(slices=waited(slices)))

    def _look_after(self, now: float, stopped: bool) -> None:
        self._follow(self._membership.looked(now))
        if self._first_call is not None and now - self._first_call > _LATECOMERS_SECONDS:
            self._carry_out(self._coordinator.stop_waiting())
        if stopped and not self._coordinator.over:
            self._carry_out(self._coordinator.stop())

    def _train_seconds(self) -> float:
        return self._seconds_before + (time.monotonic() - self._first_lease if self._first_lease else 0.0)

    def _take(self, push: Push) -> Decision:
        lease = push.lease
        receipt, decision = self._coordinator.push(lease, finite=math.isfinite(push.gradient_norm))
        if receipt is Receipt.ACCEPTED:
            self._accepted[lease] = push
            return decision
        self._note("refused", receipt=receipt.value, lease=lease)
        if receipt is Receipt.DAMAGED:
            self._damaged[lease.batch] += 1
            if self._damaged[lease.batch] == _DAMAGED:
                self._ending = PsysError(
                    f"training diverged: the gradient of batch {lease.batch} was not finite {_DAMAGED} times; lower "
                    "--schedule.learning-rate. All before is saved"
                )
        return decision

    def _enlist(self, worker: str, holding: tuple[Lease, ...], now: float, before: Decision) -> None:
        """Take a request of `worker`, and carry it out after what was decided `before` it in the same call."""
        self._follow(self._membership.asked(worker, now))
        unheard = [lease for lease in self._coordinator.ledger.outstanding(worker) if lease not in holding]
        self._note_returned(unheard)
        asked = self._coordinator.request(worker, holding)
        if asked.updates:  # not for those whom the push alone has let go on
            self._carry_out(before)
            before = Decision([], {})
        self._carry_out(Decision(before.updates + asked.updates, {**before.grants, **asked.grants}))

    def _follow(self, changes: list[Change]) -> None:
        for worker, state, reason in changes:
            if state in (State.DEAD, State.LEFT):
                self._gone.add(worker)
                if reason != "silent":
                    self._waiting.pop(worker, None)
                if worker in self._coordinator.members:
                    self._note("leave", worker=worker, reason=reason)
                    self._note_returned(self._coordinator.ledger.outstanding(worker))
                    self._carry_out(self._coordinator.leave(worker))
            elif state is State.SUSPECT:
                self._note("suspect", worker=worker)
            elif state is State.ACTIVE and reason == "asked":
                self._gone.discard(worker)
                if worker not in self._coordinator.members:
                    self._note("join", worker=worker)
            self._lock.notify_all()

    def _carry_out(self, decision: Decision) -> None:
        """Once it is settled; now if a snapshot is due of what it makes."""
        self._due.append(decision)
        self._answers += [Answer(self._waiting.pop(worker).answer, grant) for worker, grant in decision.grants.items()]
        if decision.grants:
            self._first_lease = self._first_lease or time.monotonic()
        if decision.updates and self._is_snapshot_due(decision.updates[-1].epochs_done):
            self._advance()
            self._stamp()

    def _advance(self) -> None:
        """Have all servers do what is due, their own slice last, for the others work meanwhile."""
        due, self._due = self._due, []
        steps, made = list[Advance](), list[tuple[Update, list[Push]]]()
        for decision in due:
            readers = {
                worker: Reader(grant.lease.slot, grant.drift)
                for worker, grant in decision.grants.items()
                if grant.lease
            }
            made += [(update, [self._accepted.pop(lease) for lease in update.leases]) for update in decision.updates]
            if decision.updates or readers:
                steps.append(Advance(self._steps + len(steps), tuple(decision.updates), readers, ()))
        # A gradient is needed until its update has been decided.
        if released := self._gone - {lease.worker for lease in self._accepted}:
            self._gone -= released
            steps.append(Advance(self._steps + len(steps), (), {}, tuple(released)))
        if not steps:
            return
        self._steps += len(steps)
        self._done += [shard.advance(steps) for shard in reversed(self._shards)]
        seconds = self._train_seconds()
        for update, pushes in made:
            self._unlogged.append(Made(update, seconds, pushes))
            self._reached = Reached(update.version, update.epochs_done, seconds)

    def settle(self) -> None:
        with self._guarded():
            self._advance()
            answers, self._answers = self._answers, []
            done, self._done = self._done, []
        # Outside the lock: whoever is told may call again at once.
        if all(each.done() for each in done):
            self._tell(answers, done)
        else:
            collect_all(done).add_done_callback(lambda collected: self._tell(answers, [collected]))

    def _tell(self, answers: list[Answer], done: "Sequence[Future[Any]]") -> None:
        for each in done:
            self._check(each)
        if not self._failure:
            for waiting, grant in answers:
                waiting.set_result(grant)

    def _check(self, done: "Future[Any]") -> None:
        """If a server did not do its part, its slice is in doubt: the run ends."""
        try:
            done.value()
        except Exception as error:
            with self._lock:
                self._failure = self._failure or lost(error)
                self._lock.notify_all()

    def _note_returned(self, leases: Sequence[Lease]) -> None:
        if leases:
            self._note("returned", leases=leases)

    def _note(self, event: str, **fields: Any) -> None:
        self._unlogged.append((event, {**fields, "seconds": self._train_seconds()}))

    def flush(self) -> None:
        """Write down what has happened: in the server's own thread, for no worker should wait for a diary."""
        with self._lock:
            unlogged, self._unlogged = self._unlogged, []
        for each in unlogged:
            if isinstance(each, Made):
                self._write_update(each)
            else:
                self._events.write(each[0], **each[1])

    def _write_update(self, made: Made) -> None:
        images = sum(self._coordinator.ledger.size(lease.batch) for lease in made.update.leases)
        self._events.write("update", **made.fields(), images=images)
        self._status.add(made.update, images, made.seconds, made.loss, made.accuracy)

    def _is_snapshot_due(self, epochs: float) -> bool:
        every = self._config.snapshot_epochs
        return int(epochs / every) > int(self._reached.epochs / every)

    def _stamp(self) -> None:
        if self._reached.version > self._stamped_version:
            self._stamped_version = self._reached.version
            slices = [shard.snapshot() for shard in self._shards]
            self._unsaved.append((slices, Stamped([], *self._reached)))

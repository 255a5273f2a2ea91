"""The server: workers' calls drive the coordinator under one lock; what it decides is answered and written down."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch.futures import Future

from psys.cluster.config import RunConfig
from psys.cluster.progress import Status
from psys.cluster.transport import Push, Welcome, Work
from psys.events import EventLog
from psys.ps.coordinator import Coordinator, Decision, Update
from psys.ps.ledger import Lease, Proof, Receipt
from psys.ps.membership import Membership
from psys.ps.store import Snapshot

_LATECOMERS_SECONDS = 60.0  # how long the workers that came wait for those that were expected
_FAREWELL_SECONDS = 10.0  # how long a server whose run is over waits for workers to say good-bye
_TICK_SECONDS = 0.2


class Stamped(NamedTuple):
    """A snapshot to be evaluated later, stamped with when it was reached."""

    snapshot: Snapshot
    epochs: float
    train_seconds: float


class Server:
    """A `Service` over one Coordinator. Training time runs from the first lease to the last update.

    `save` is called from `run` with what is to be evaluated later: every `snapshot_epochs` and at the end.
    Events written: join, update, refused, leave, end.
    """

    def __init__(
        self,
        config: RunConfig,
        store_hash: str,
        coordinator: Coordinator,
        events: EventLog,
        save: Callable[[Stamped], None],
    ) -> None:
        self._settings, self._store_hash = config.model_dump_json(), store_hash
        self._snapshot_epochs = config.snapshot_epochs
        self._coordinator, self._events, self._save = coordinator, events, save
        self._membership = Membership(config.heartbeat_timeout)
        self._lock = threading.Condition()
        self._waiting: dict[str, Future[Work]] = {}
        self._answers: list[tuple[Future[Work], Work]] = []
        self._accepted: dict[Lease, Push] = {}
        self._unsaved: list[Stamped] = []
        self._stamped_version = 0
        self._failure: Exception | None = None
        self._first_call: float | None = None  # monotonic seconds, as is the next
        self._first_lease: float | None = None
        self._status = Status(config.mode, config.epochs)

    # The Service: called from RPC threads.

    def hello(self) -> Welcome:
        return Welcome(self._settings, self._store_hash)

    def push_pull(self, worker: int, push: Push | None) -> "Future[Work]":
        name = f"worker{worker}"
        answer: Future[Work] = Future()
        with self._guarded():
            now = time.monotonic()
            self._membership.heard(name, now)
            self._first_call = self._first_call or now
            if push is not None:
                self._take(push)
            self._waiting[name] = answer
            self._enlist(name)
        self._send_answers()
        return answer

    def beat(self, worker: int) -> None:
        name = f"worker{worker}"
        with self._guarded():
            self._membership.heard(name, time.monotonic())
            if name in self._waiting and name not in self._coordinator.members:
                self._enlist(name)  # it was taken for dead while it waited
        self._send_answers()

    def leave(self, worker: int) -> None:
        with self._guarded():
            self._waiting.pop(f"worker{worker}", None)
            self._drop(f"worker{worker}", "left")
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
        Raises whatever an answer to a worker failed with, such as OSError for a full disk.
        """
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
            for stamped in unsaved:
                self._save(stamped)
            tick(self._status)
            if ended:
                break
        proof = self._coordinator.ledger.proof()
        self._events.write("end", seconds=self._status.train_seconds, **vars(proof))
        return proof

    def _look_after(self, now: float, stopped: bool) -> None:
        for name in self._membership.silent(now):
            self._drop(name, "silent")
        if self._first_call is not None and now - self._first_call > _LATECOMERS_SECONDS:
            self._carry_out(self._coordinator.stop_waiting())
        if stopped and not self._coordinator.over:
            self._carry_out(self._coordinator.stop())

    def _train_seconds(self) -> float:
        return 0.0 if self._first_lease is None else time.monotonic() - self._first_lease

    def _take(self, push: Push) -> None:
        receipt, decision = self._coordinator.push(push.lease, push.gradient, push.statistics)
        if receipt is Receipt.ACCEPTED:
            self._accepted[push.lease] = push
        else:
            self._events.write("refused", receipt=receipt.value, lease=push.lease, seconds=self._train_seconds())
        self._carry_out(decision)

    def _enlist(self, name: str) -> None:
        if name not in self._coordinator.members:
            self._events.write("join", worker=name, seconds=self._train_seconds())
        self._carry_out(self._coordinator.request(name))

    def _drop(self, name: str, reason: str) -> None:
        self._membership.forget(name)
        if name in self._coordinator.members:
            self._events.write("leave", worker=name, reason=reason, seconds=self._train_seconds())
            self._carry_out(self._coordinator.leave(name))
        self._lock.notify_all()

    def _carry_out(self, decision: Decision) -> None:
        before = int(self._status.epochs_done / self._snapshot_epochs)
        for update in decision.updates:
            self._note(update)
        if int(self._status.epochs_done / self._snapshot_epochs) > before:
            self._stamp()
        if decision.grants:
            self._first_lease = self._first_lease or time.monotonic()
            snapshot = self._coordinator.store.snapshot()
            for name, lease in decision.grants.items():
                self._answers.append((self._waiting.pop(name), Work(lease, snapshot)))

    def _send_answers(self) -> None:
        # Outside the lock: completing a future serialises the parameters.
        with self._lock:
            answers, self._answers = self._answers, []
        for future, work in answers:
            future.set_result(work)

    def _note(self, update: Update) -> None:
        seconds = self._train_seconds()
        pushes = [self._accepted.pop(lease) for lease in update.leases]
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

    def _stamp(self) -> None:
        snapshot = self._coordinator.store.snapshot()
        if snapshot.version > self._stamped_version:
            self._stamped_version = snapshot.version
            self._unsaved.append(Stamped(snapshot, self._status.epochs_done, self._status.train_seconds))

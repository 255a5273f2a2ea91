"""Consistency models: who may start a batch now, and which pushed gradients make the next update."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

from psys.ps.messages import Lease

Mode = Literal["sync", "async", "ssp"]


class Due(NamedTuple):
    """An update that is due."""

    leases: Sequence[Lease]  # whose mean gradient it is, in batch order
    late: Sequence[Lease] = ()  # given up for it, in batch order: their batches are due again


class Policy(Protocol):
    """A consistency model over named workers. The coordinator reports everything that happens; a policy never acts.

    Every method takes constant time, or time in proportion to the workers that an update concerns.
    """

    def join(self, worker: str) -> None:
        """`worker` takes part from now on."""

    def leave(self, worker: str, abandoned: Iterable[Lease]) -> None:
        """`worker` is gone and its leases `abandoned` will not arrive; what it pushed before still counts."""

    def admits(self, worker: str) -> bool:
        """Whether `worker` may read the parameters and start a batch now."""

    def begin(self, lease: Lease) -> None:
        """The worker of `lease` started it."""

    def accepts(self, lease: Lease, version: int) -> bool:
        """Whether the gradient of `lease`, which is pushed now, is not too late for the parameters of `version`."""

    def arrive(self, lease: Lease) -> None:
        """The gradient of `lease` has been accepted."""

    def period(self) -> int:
        """How many updates lie between two updates with a gradient of the same worker, if all are equally fast."""

    def due(self, exhausted: bool) -> Due | None:
        """The next update; None while none is due. The leases given up for it will not arrive.

        `exhausted`: no batch is left to be leased, so no other worker can take part. Call until None.
        """

    def advanced(self, epochs_done: float) -> "Policy":
        """The policy from here on, now that batches of that many epochs are applied: this one, or its successor."""

    def opened(self) -> bool:
        """Whether workers that were not admitted before may be admitted now; False again until the next change."""


class Async:
    """Every gradient is an update of its own as it arrives; no worker waits (Downpour SGD, Dean et al. 2012).

    `max_staleness`: a gradient is too late if more updates than that lie between reading and applying. The worker that
    pushed it goes on with the parameters of now, so that each version is soon followed by another one, even with 0.
    Source: Maranjyan, Tyurin & Richtarik 2025, "Ringmaster ASGD: The First Asynchronous SGD with Optimal Time
    Complexity".
    """

    def __init__(self, max_staleness: int | None = None) -> None:
        self._max_staleness = max_staleness
        self._arrived: list[Lease] = []
        self._workers: set[str] = set()

    def join(self, worker: str) -> None:
        self._workers.add(worker)

    def leave(self, worker: str, abandoned: Iterable[Lease]) -> None:
        self._workers.discard(worker)

    def admits(self, worker: str) -> bool:
        return True

    def begin(self, lease: Lease) -> None: ...

    def accepts(self, lease: Lease, version: int) -> bool:
        return self._max_staleness is None or version - lease.version <= self._max_staleness

    def arrive(self, lease: Lease) -> None:
        self._arrived.append(lease)

    def period(self) -> int:
        return len(self._workers)

    def due(self, exhausted: bool) -> Due | None:
        return Due([self._arrived.pop(0)]) if self._arrived else None

    def advanced(self, epochs_done: float) -> Policy:
        return self

    def opened(self) -> bool:
        return False


class Rounds:
    """Updates are rounds to which each worker gives one gradient; a worker may run `staleness` rounds ahead.

    With staleness 0 this is synchronous SGD. Above 0 it is bounded delay (stale synchronous parallel, Ho et al. 2013;
    Li et al. 2014): a gradient of round r was computed on parameters that contain every round before r - staleness, so
    at most `staleness` updates lie between reading and applying. The mean is taken in batch order, so a synchronous
    update does not depend on which worker computed what, nor on the order of arrival.

    `backup_workers`: a round does not wait for that many of its workers, those that are latest (Chen et al. 2016,
    "Revisiting Distributed Synchronous SGD"). Their leases are given up, and they take part in the round that is open
    when they ask again. A worker that is still computing for an earlier round counts among those not waited for. A
    round has one gradient or more.
    """

    def __init__(self, staleness: int, backup_workers: int = 0) -> None:
        if min(staleness, backup_workers) < 0:
            raise ValueError(f"rounds need staleness and backup_workers >= 0, got {staleness}, {backup_workers}")
        self._staleness, self._backup_workers = staleness, backup_workers
        self._open = 0  # the oldest round not yet applied
        self._newest = -1  # the newest round that any worker began
        self._next: dict[str, int] = {}  # the round of each worker's next batch, never below the open one
        self._next_in: defaultdict[int, set[str]] = defaultdict(set)  # workers by the round of their next batch
        self._rounds_of: defaultdict[str, dict[Lease, int]] = defaultdict(dict)  # of leases begun and not arrived
        self._missing: defaultdict[int, set[Lease]] = defaultdict(set)  # the same, by round
        self._arrived: defaultdict[int, list[Lease]] = defaultdict(list)
        self._opened = False

    def join(self, worker: str) -> None:
        # A worker that never received a lease joins anew; the leases it still holds keep their rounds open.
        held = self._rounds_of[worker].values() if worker in self._rounds_of else ()
        self._start_in(worker, 1 + max(held, default=self._newest))

    def leave(self, worker: str, abandoned: Iterable[Lease]) -> None:
        if worker in self._next:
            self._next_in[self._next.pop(worker)].discard(worker)
        for lease in abandoned:
            self._end(lease)

    def admits(self, worker: str) -> bool:
        return self._next[worker] <= self._open + self._staleness

    def begin(self, lease: Lease) -> None:
        begun = self._rounds_of[lease.worker][lease] = self._next[lease.worker]
        self._missing[begun].add(lease)
        self._newest = max(self._newest, begun)
        self._start_in(lease.worker, begun + 1)

    def accepts(self, lease: Lease, version: int) -> bool:
        return True

    def arrive(self, lease: Lease) -> None:
        self._arrived[self._end(lease)].append(lease)

    def period(self) -> int:
        return 1

    def due(self, exhausted: bool) -> Due | None:
        while self._open <= self._newest and self._complete(exhausted):
            leases = self._arrived.pop(self._open, [])
            late = sorted(self._missing[self._open])
            for lease in late:
                self._end(lease)
            del self._missing[self._open]
            idle = self._next_in.pop(self._open, set())
            self._open += 1
            self._opened = True
            # A worker that had no batch in this round takes part in the next one, not in a past one.
            for worker in idle:
                self._next[worker] = self._open
            self._next_in[self._open] |= idle
            if leases:
                return Due(sorted(leases), late)
        return None

    def advanced(self, epochs_done: float) -> Policy:
        return self

    def opened(self) -> bool:
        opened, self._opened = self._opened, False
        return opened

    def _complete(self, exhausted: bool) -> bool:
        missing, idle = self._missing[self._open], self._next_in[self._open]
        if not missing and (exhausted or not idle):
            return True
        return self._open in self._arrived and len(missing) + len(idle) <= self._backup_workers

    def _start_in(self, worker: str, round_number: int) -> None:
        if worker in self._next:
            self._next_in[self._next[worker]].discard(worker)
        self._next[worker] = round_number
        self._next_in[round_number].add(worker)

    def _end(self, lease: Lease) -> int:
        rounds = self._rounds_of[lease.worker]
        round_number = rounds.pop(lease)
        if not rounds:
            del self._rounds_of[lease.worker]
        self._missing[round_number].remove(lease)
        return round_number


class SyncFirst(Rounds):
    """Synchronous SGD until batches of `epochs` epochs are applied, then the policy `successor`.

    Gradients of the first epochs change the parameters most, and late ones do most harm there: Sync-Switch (Li et al.
    2021, "Sync-Switch: Hybrid Parameter Synchronization for Distributed Deep Learning", arXiv 2104.08364). Gradients
    that have arrived for the next round by then, with `prefetch`, are accepted whatever bound the successor has.
    """

    def __init__(self, prefetch: int, epochs: float, successor: Policy) -> None:
        super().__init__(prefetch)
        self._epochs, self._successor = epochs, successor

    def advanced(self, epochs_done: float) -> Policy:
        if epochs_done < self._epochs:
            return self
        arrived = [lease for leases in self._arrived.values() for lease in leases]
        gone = {lease.worker for lease in arrived} - self._next.keys()
        for worker in (*self._next, *gone):
            self._successor.join(worker)
        # All are of one round, the oldest: none of an earlier round is left, and no worker was further ahead.
        for lease in (*arrived, *(lease for leases in self._rounds_of.values() for lease in leases)):
            self._successor.begin(lease)
        for lease in arrived:
            self._successor.arrive(lease)
        for worker in gone:
            self._successor.leave(worker, ())
        return self._successor


def rounds_ahead(mode: Mode, staleness: int, prefetch: int) -> int:
    """How many batches a worker may begin before its earliest one is applied, besides that earliest one."""
    return prefetch + (staleness if mode == "ssp" else 0)


def make_policy(
    mode: Mode,
    staleness: int,
    prefetch: int,
    backup_workers: int = 0,
    max_staleness: int | None = None,
    sync_epochs: float = 0.0,
) -> Policy:
    """The policy of a mode; `staleness` (rounds) is the bound of `ssp` and has no meaning in the other modes.

    Workers that ask for a batch `prefetch` ahead of the one they compute are as many rounds further ahead.
    `backup_workers` belongs to `sync` (see Rounds), `max_staleness` to `async` (see Async), `sync_epochs` to both modes
    but `sync` (see SyncFirst).
    """
    match mode:
        case "async":
            policy: Policy = Async(max_staleness)
        case "sync" | "ssp":
            policy = Rounds(rounds_ahead(mode, staleness, prefetch), backup_workers)
        case _:
            raise ValueError(f"unknown mode '{mode}': expected sync, async or ssp")
    return SyncFirst(prefetch, sync_epochs, policy) if sync_epochs else policy

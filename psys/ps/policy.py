"""Consistency models: who may start a batch now, and which pushed gradients make the next update."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Literal, Protocol

from psys.ps.ledger import Lease

Mode = Literal["sync", "async", "ssp"]


class Policy(Protocol):
    """A consistency model over named workers. The caller tells it everything that happens; it never acts."""

    def join(self, worker: str) -> None:
        """`worker` takes part from now on."""

    def leave(self, worker: str, abandoned: Iterable[Lease]) -> None:
        """`worker` is gone and the leases it held will not arrive; what it pushed before still counts."""

    def admits(self, worker: str) -> bool:
        """Whether `worker` may read the parameters and start a batch now."""

    def begin(self, lease: Lease) -> None:
        """The worker of `lease` started it."""

    def arrive(self, lease: Lease) -> None:
        """The gradient of `lease` has been accepted."""

    def period(self) -> int:
        """How many updates it is from one that has a worker's gradient to the next, of workers equally fast."""

    def due(self, exhausted: bool) -> list[Lease] | None:
        """The leases whose mean gradient is the next update, in batch order; None while nothing is due.

        `exhausted`: no batch is left to hand out, so nobody else can take part. Call until None.
        """


class Async:
    """Every gradient is an update of its own, as soon as it arrives; nobody waits (Downpour SGD, Dean et al. 2012)."""

    def __init__(self) -> None:
        self._arrived: list[Lease] = []
        self._workers: set[str] = set()

    def join(self, worker: str) -> None:
        self._workers.add(worker)

    def leave(self, worker: str, abandoned: Iterable[Lease]) -> None:
        self._workers.discard(worker)

    def admits(self, worker: str) -> bool:
        return True

    def begin(self, lease: Lease) -> None: ...

    def arrive(self, lease: Lease) -> None:
        self._arrived.append(lease)

    def period(self) -> int:
        return len(self._workers)

    def due(self, exhausted: bool) -> list[Lease] | None:
        return [self._arrived.pop(0)] if self._arrived else None


class Rounds:
    """Updates are rounds to which each worker gives one gradient; a worker may run `staleness` rounds ahead.

    With staleness 0 this is synchronous SGD; above, it is bounded delay (stale synchronous parallel, Ho et al. 2013;
    Li et al. 2014): a gradient of round r was computed on parameters that contain every round before r - staleness, so
    at most `staleness` updates lie between reading and applying. The mean is taken in batch order, so a synchronous
    update does not depend on who computed what or who came first.
    """

    def __init__(self, staleness: int) -> None:
        if staleness < 0:
            raise ValueError(f"staleness must be 0 or more rounds, got {staleness}")
        self._staleness = staleness
        self._open = 0  # the oldest round not yet applied
        self._newest = -1  # the newest round that anyone began
        self._next: dict[str, int] = {}  # the round of each worker's next batch
        self._round_of: dict[Lease, int] = {}
        self._arrived: dict[int, list[Lease]] = defaultdict(list)

    def join(self, worker: str) -> None:
        # One that never heard of a lease joins anew; what it still holds keeps open the rounds that it is part of.
        held = [begun for lease, begun in self._round_of.items() if lease.worker == worker]
        self._next[worker] = 1 + max(held, default=self._newest)

    def leave(self, worker: str, abandoned: Iterable[Lease]) -> None:
        self._next.pop(worker, None)
        for lease in abandoned:
            del self._round_of[lease]

    def admits(self, worker: str) -> bool:
        return self._next[worker] <= self._open + self._staleness

    def begin(self, lease: Lease) -> None:
        begun = self._round_of[lease] = self._next[lease.worker]
        self._newest = max(self._newest, begun)
        self._next[lease.worker] = begun + 1

    def arrive(self, lease: Lease) -> None:
        self._arrived[self._round_of.pop(lease)].append(lease)

    def period(self) -> int:
        return 1

    def due(self, exhausted: bool) -> list[Lease] | None:
        while self._open <= self._newest and self._complete(exhausted):
            leases = self._arrived.pop(self._open, [])
            self._open += 1
            # A worker that found nothing to do while this round closed takes part in the next, not in a past one.
            for worker, begins in self._next.items():
                self._next[worker] = max(begins, self._open)
            if leases:
                return sorted(leases)
        return None

    def _complete(self, exhausted: bool) -> bool:
        if self._open in self._round_of.values():
            return False
        return exhausted or all(begins > self._open for begins in self._next.values())


def rounds_ahead(mode: Mode, staleness: int, prefetch: int) -> int:
    """How many batches a worker may begin before its earliest one is applied, besides that one."""
    return prefetch + (staleness if mode == "ssp" else 0)


def make_policy(mode: Mode, staleness: int, prefetch: int) -> Policy:
    """The policy of a mode; `staleness` (rounds) is the bound of `ssp` and has no meaning in the others.

    Workers that ask for a batch `prefetch` ahead of the one they compute are as many rounds further ahead.
    """
    match mode:
        case "async":
            return Async()
        case "sync" | "ssp":
            return Rounds(rounds_ahead(mode, staleness, prefetch))
        case _:
            raise ValueError(f"unknown mode '{mode}': expected sync, async or ssp")

"""Consistency models: who may start a batch now, and which pushed gradients make the next update."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Literal, Protocol

from psys.ps.messages import Lease

Mode = Literal["sync", "async", "ssp"]


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

    def arrive(self, lease: Lease) -> None:
        """The gradient of `lease` has been accepted."""

    def period(self) -> int:
        """How many updates lie between two updates with a gradient of the same worker, if all are equally fast."""

    def due(self, exhausted: bool) -> list[Lease] | None:
        """The leases whose mean gradient is the next update, in batch order; None while no update is due.

        `exhausted`: no batch is left to be leased, so no other worker can take part. Call until None.
        """

    def opened(self) -> bool:
        """Whether workers that were not admitted before may be admitted now; False again until the next change."""


class Async:
    """Every gradient is an update of its own as it arrives; no worker waits (Downpour SGD, Dean et al. 2012)."""

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

    def opened(self) -> bool:
        return False


class Rounds:
    """Updates are rounds to which each worker gives one gradient; a worker may run `staleness` rounds ahead.

    With staleness 0 this is synchronous SGD. Above 0 it is bounded delay (stale synchronous parallel, Ho et al. 2013;
    Li et al. 2014): a gradient of round r was computed on parameters that contain every round before r - staleness, so
    at most `staleness` updates lie between reading and applying. The mean is taken in batch order, so a synchronous
    update does not depend on which worker computed what, nor on the order of arrival.
    """

    def __init__(self, staleness: int) -> None:
        if staleness < 0:
            raise ValueError(f"staleness must be 0 or more rounds, got {staleness}")
        self._staleness = staleness
        self._open = 0  # the oldest round not yet applied
        self._newest = -1  # the newest round that any worker began
        self._next: dict[str, int] = {}  # the round of each worker's next batch, never below the open one
        self._next_in: defaultdict[int, set[str]] = defaultdict(set)  # workers by the round of their next batch
        self._rounds_of: defaultdict[str, dict[Lease, int]] = defaultdict(dict)  # of leases begun and not arrived
        self._missing: Counter[int] = Counter()  # leases begun and not arrived, by round
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
            self._missing[self._end(lease)] -= 1

    def admits(self, worker: str) -> bool:
        return self._next[worker] <= self._open + self._staleness

    def begin(self, lease: Lease) -> None:
        begun = self._rounds_of[lease.worker][lease] = self._next[lease.worker]
        self._missing[begun] += 1
        self._newest = max(self._newest, begun)
        self._start_in(lease.worker, begun + 1)

    def arrive(self, lease: Lease) -> None:
        round_number = self._end(lease)
        self._missing[round_number] -= 1
        self._arrived[round_number].append(lease)

    def period(self) -> int:
        return 1

    def due(self, exhausted: bool) -> list[Lease] | None:
        while self._open <= self._newest and self._complete(exhausted):
            leases = self._arrived.pop(self._open, [])
            del self._missing[self._open]
            idle = self._next_in.pop(self._open, set())
            self._open += 1
            self._opened = True
            # A worker that had no batch in this round takes part in the next one, not in a past one.
            for worker in idle:
                self._next[worker] = self._open
            self._next_in[self._open] |= idle
            if leases:
                return sorted(leases)
        return None

    def opened(self) -> bool:
        opened, self._opened = self._opened, False
        return opened

    def _complete(self, exhausted: bool) -> bool:
        return not self._missing[self._open] and (exhausted or not self._next_in[self._open])

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
        return round_number


def rounds_ahead(mode: Mode, staleness: int, prefetch: int) -> int:
    """How many batches a worker may begin before its earliest one is applied, besides that earliest one."""
    return prefetch + (staleness if mode == "ssp" else 0)


def make_policy(mode: Mode, staleness: int, prefetch: int) -> Policy:
    """The policy of a mode; `staleness` (rounds) is the bound of `ssp` and has no meaning in the other modes.

    Workers that ask for a batch `prefetch` ahead of the one they compute are as many rounds further ahead.
    """
    match mode:
        case "async":
            return Async()
        case "sync" | "ssp":
            return Rounds(rounds_ahead(mode, staleness, prefetch))
        case _:
            raise ValueError(f"unknown mode '{mode}': expected sync, async or ssp")

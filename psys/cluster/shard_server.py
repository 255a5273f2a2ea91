"""One server's slice of the parameters, with all workers' lanes: gradients are read there, parameters put there."""

import threading
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.futures import Future

from psys.compute.device import available_cores
from psys.ps.codec import Wire, gradient_codec, parameter_codec
from psys.ps.coordinator import Update
from psys.ps.store import Contribution, ParameterStore, Snapshot, StoreState
from psys.transport.protocol import Advance, Reader
from psys.transport.shared_memory import LaneAddress, Layout, RemoteLane

_FAIR_SHARE = 16  # pieces of a thread: for less it is not worth waking


class Shard:
    """A `ShardService` over one ParameterStore. A slot is written between its worker's call and the answer, when that
    does not read there, so nobody sees half an update and nothing is copied for the sake of it.
    """

    def __init__(self, index: int, store: ParameterStore, layout: Layout, wire: Wire, topk_share: float) -> None:
        self._index, self._store, self.layout = index, store, layout
        self._numel = len(store.parameters)
        self._gradients, self._parameters = gradient_codec(wire, topk_share), parameter_codec(wire)
        self._attached: dict[str, tuple[LaneAddress, bool]] = {}  # and whether the lane can be seen
        self._lanes: dict[str, RemoteLane] = {}
        self._lock = threading.Lock()
        self._next = 0
        self._whole = True  # no step has failed on its way: none may follow it, and nobody read what it left
        self.finished = threading.Event()
        self._pool = ThreadPoolExecutor(thread_name_prefix="psys-step")  # that starts none until one is needed
        self._scratch = [torch.empty_like(store.parameters) for _ in range(2)]  # takes no memory until it is written

    def attach(self, worker: str, address: LaneAddress, nbytes: int) -> bool:
        if nbytes != self.layout.nbytes:
            raise ValueError(f"{worker} has a lane of {nbytes} bytes, this run's has {self.layout.nbytes}")
        with self._lock:
            # One that comes back may have a gradient in its lane that was accepted before.
            known = worker in self._lanes and self._attached[worker][0] == address
            lane = self._lanes[worker] if known else RemoteLane(self.layout, address)
            self._lanes[worker], self._attached[worker] = lane, (address, lane.shared)
            return lane.shared

    def put(self, worker: str, offset: int, chunk: Tensor) -> None:
        with self._lock:
            self._lane(worker)[offset : offset + len(chunk)].copy_(chunk)

    def get(self, worker: str, offset: int, length: int) -> Tensor:
        with self._lock:
            return self._lane(worker).chunk(offset, offset + length)

    def advance(self, steps: Sequence[Advance]) -> "Future[None]":
        with self._lock:
            self._see_that_it_is_whole()
            for number, step in enumerate(steps, self._next):
                assert step.number == number, f"step {step.number} came instead of {number}"
            self._whole = False
            helpers = self._idle_cores(waiting={worker for step in steps for worker in step.readers})
            due = _ByPiece(len(self._store.pieces), self._pool, helpers)
            for step in steps:
                for update in step.updates:
                    contributions = self._contributions(update, due)
                    due.add(self._store.begin(contributions, update.learning_rate, update.statistics_share))
                self._deliver(step.readers, due)
                if step.released:
                    due.finish()
                for worker in step.released:
                    self._lanes.pop(worker, None)
            due.finish()
            self._next += len(steps)
            self._whole = True
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def snapshot(self) -> "Future[Snapshot]":
        taken: Future[Snapshot] = Future()
        with self._lock:
            self._see_that_it_is_whole()
            taken.set_result(self._store.snapshot())
        return taken

    def state(self) -> "Future[StoreState]":
        taken: Future[StoreState] = Future()
        with self._lock:
            self._see_that_it_is_whole()
            taken.set_result(self._store.state())
        return taken

    def restore(self, state: StoreState) -> None:
        with self._lock:
            self._store.restore(state)

    def finish(self) -> None:
        self.finished.set()

    def _see_that_it_is_whole(self) -> None:
        assert self._whole, "a step before failed on its way"

    def _lane(self, worker: str) -> RemoteLane:
        if worker not in self._lanes:
            address, shared = self._attached[worker]
            self._lanes[worker] = RemoteLane(self.layout, address if shared else None)
        return self._lanes[worker]

    def _idle_cores(self, waiting: Set[str]) -> int:
        """Beside this thread's, as far as a share of the pieces is worth it: some of this host's workers wait."""
        if (most := len(self._store.pieces) // _FAIR_SHARE) < 2:
            return 0
        here = {worker for worker, lane in self._lanes.items() if lane.shared}
        idle = available_cores() * len(here & waiting) // len(here) if here else available_cores()
        return max(0, min(idle, most) - 1)

    def _contributions(self, update: Update, due: "_ByPiece") -> list[Contribution]:
        """The update's gradients where they stand, or, of a format that has to be decoded whole, their mean."""
        found: list[Contribution] = []
        for lease, share in zip(update.leases, update.shares, strict=True):
            lane = self._lanes[lease.worker]  # a new one would have no gradient in it
            if self._attached[lease.worker][1] and not lane.shared:
                raise RuntimeError(f"the memory of {lease.worker} cannot be opened any more")
            slot = lane.slots[lease.slot]
            payload = slot.gradient[self._index]
            gradient = self._gradients.elements(payload, self._numel)
            if gradient is None:
                due.finish()  # of the update before, which was decoded to the same place
                gradient = self._gradients.decode(payload, self._scratch[1 if found else 0])
            statistics = slot.statistics if self._index == 0 else slot.statistics[:0]
            found.append(Contribution(gradient, statistics, share))
            if gradient is self._scratch[1]:  # there is room for one beside the sum
                found = [_sum(*found)]
        return found

    def _deliver(self, readers: dict[str, Reader], due: "_ByPiece") -> None:
        slots = [(self._lane(worker).slots[slot], drift) for worker, (slot, drift) in readers.items()]
        places = [(slot.parameters[self._index], drift) for slot, drift in slots]
        vectors = [(self._parameters.elements(place, self._numel), drift) for place, drift in places]
        parts = [(self._store.split(vector), drift) for vector, drift in vectors if vector is not None]

        def deliver(number: int) -> None:
            for its_parts, drift in parts:
                self._store.piece_ahead(number, drift, its_parts[number])

        if len(parts) == len(places):
            due.add(deliver)
        else:  # the format needs to see all parameters before it writes any
            due.finish()
            self._deliver_whole(places)
        if self._index == 0:
            for slot, _ in slots:
                slot.statistics.copy_(self._store.statistics)

    def _deliver_whole(self, places: list[tuple[Tensor, float]]) -> None:
        for drift in {drift for _, drift in places}:
            first, *others = [payload for payload, its in places if its == drift]
            self._parameters.encode(self._store.ahead(drift, self._scratch[1]), first)
            for payload in others:
                payload.copy_(first)


class _ByPiece:
    """What is to be done with each of a store's pieces, in order: all of it while the piece is in a core's cache."""

    def __init__(self, count: int, pool: ThreadPoolExecutor, helpers: int) -> None:
        self._count, self._pool, self._helpers = count, pool, helpers
        self._due: list[Callable[[int], None]] = []

    def add(self, function: Callable[[int], None]) -> None:
        self._due.append(function)

    def finish(self) -> None:
        """Do it, with the help of so many threads."""
        if not self._due:
            return
        due, self._due = self._due, []
        numbers = iter(range(self._count))

        def work() -> None:
            for number in numbers:
                for function in due:
                    function(number)

        working = [self._pool.submit(work) for _ in range(self._helpers)]
        try:
            work()
        finally:
            errors = [each.exception() for each in working]  # nobody writes any more
        for error in filter(None, errors):
            raise error


def _sum(first: Contribution, second: Contribution) -> Contribution:
    """Both, by their shares: one that needs no share any more, in the memory of the first."""
    if first.share != 1:
        first.gradient.mul_(first.share)
    first.gradient.add_(second.gradient, alpha=second.share)
    statistics = torch.add(first.statistics * first.share, second.statistics, alpha=second.share)
    return Contribution(first.gradient, statistics, 1.0)

"""One server's slice of the parameters, with all workers' lanes: gradients are read there, parameters put there."""

import threading
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import torch
from torch import Tensor
from torch.futures import Future

from psys.cluster.lane import LaneAddress, Layout, RemoteLane
from psys.cluster.transport import Advance
from psys.compute.device import available_cores
from psys.ps.codec import Wire, gradient_codec, parameter_codec
from psys.ps.coordinator import Update
from psys.ps.store import Contribution, ForAll, ParameterStore, Snapshot, StoreState, in_turn

_FAIR_SHARE = 16  # pieces of a thread: for less it is not worth waking


class Shard:
    """A `ShardService` over one ParameterStore. A slot is written between its worker's call and the answer, when that
    does not read there, so nobody sees half an update and nothing is copied for the sake of it.
    """

    def __init__(self, index: int, store: ParameterStore, layout: Layout, wire: Wire, topk_share: float) -> None:
        self._index, self._store, self.layout = index, store, layout
        self._gradients, self._parameters = gradient_codec(wire, topk_share), parameter_codec(wire)
        self._attached: dict[str, tuple[LaneAddress, bool]] = {}  # and whether the lane can be seen
        self._lanes: dict[str, RemoteLane] = {}
        self._lock = threading.Lock()
        self._next = 0
        self.finished = threading.Event()
        self._helpers = ThreadPoolExecutor(thread_name_prefix="psys-step")  # that starts none until one is needed
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

    def advance(self, step: Advance) -> "Future[None]":
        with self._lock:
            assert step.number == self._next, f"step {step.number} came instead of {self._next}"
            places = [
                (self._lane(worker).slots[slot].parameters[self._index], drift)
                for worker, (slot, drift) in step.readers.items()
            ]
            for_all = self._for_all(waiting=step.readers.keys())
            deliver = self._by_piece(places)
            for update in step.updates:
                stepped = deliver if update is step.updates[-1] else None
                contributions = self._contributions(update)
                self._store.apply(contributions, update.learning_rate, update.statistics_share, stepped, for_all)
            if deliver is None:
                self._deliver_whole(places)
            elif not step.updates:
                for number in range(len(self._store.pieces)):
                    deliver(number)
            if self._index == 0:
                for worker, (slot, _) in step.readers.items():
                    self._lane(worker).slots[slot].statistics.copy_(self._store.statistics)
            for worker in step.released:
                self._lanes.pop(worker, None)
            self._next += 1  # not of a step that failed: none may follow it
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def snapshot(self) -> "Future[Snapshot]":
        taken: Future[Snapshot] = Future()
        with self._lock:
            taken.set_result(self._store.snapshot())
        return taken

    def state(self) -> "Future[StoreState]":
        taken: Future[StoreState] = Future()
        with self._lock:
            taken.set_result(self._store.state())
        return taken

    def restore(self, state: StoreState) -> None:
        with self._lock:
            self._store.restore(state)

    def finish(self) -> None:
        self.finished.set()

    def _lane(self, worker: str) -> RemoteLane:
        if worker not in self._lanes:
            address, shared = self._attached[worker]
            self._lanes[worker] = RemoteLane(self.layout, address if shared else None)
        return self._lanes[worker]

    def _for_all(self, waiting: Set[str]) -> ForAll:
        """With a thread for each core that is idle: of this host's workers, some are `waiting` for what comes."""
        if (most := len(self._store.pieces) // _FAIR_SHARE) < 2:
            return in_turn
        here = {worker for worker, lane in self._lanes.items() if lane.shared}
        idle = available_cores() * len(here & waiting) // len(here) if here else available_cores()
        helpers = min(idle, most) - 1
        return partial(self._at_once, helpers) if helpers > 0 else in_turn

    def _at_once(self, helpers: int, function: Callable[[int], None], count: int) -> None:
        numbers = iter(range(count))

        def work() -> None:
            for number in numbers:
                function(number)

        working = [self._helpers.submit(work) for _ in range(helpers)]
        try:
            work()
        finally:
            wait(working)
        for each in working:
            each.result()

    def _contributions(self, update: Update) -> list[Contribution]:
        """The update's gradients where they stand, or, of a format that has to be decoded whole, their mean."""
        found: list[Contribution] = []
        for lease, share in zip(update.leases, update.shares, strict=True):
            lane = self._lanes[lease.worker]  # a new one would have no gradient in it
            if self._attached[lease.worker][1] and not lane.shared:
                raise RuntimeError(f"the memory of {lease.worker} cannot be opened any more")
            slot = lane.slots[lease.slot]
            payload = slot.gradient[self._index]
            gradient = self._gradients.elements(payload, len(self._store.parameters))
            if gradient is None:
                gradient = self._gradients.decode(payload, self._scratch[1 if found else 0])
            statistics = slot.statistics if self._index == 0 else slot.statistics[:0]
            found.append(Contribution(gradient, statistics, share))
            if gradient is self._scratch[1]:  # there is room for one beside the sum
                found = [_sum(*found)]
        return found

    def _by_piece(self, places: list[tuple[Tensor, float]]) -> Callable[[int], None] | None:
        """What puts one of the store's pieces into each reader's payload, as far ahead as it says beside it.

        To be called while the last step has it in the cache, and often the gradient whose place it takes. None if the
        format needs to see all parameters before it writes any.
        """
        vectors = []
        for payload, drift in places:
            elements = self._parameters.elements(payload, len(self._store.parameters))
            if elements is None:
                return None
            vectors.append((self._store.split(elements), drift))

        def deliver(number: int) -> None:
            for parts, drift in vectors:
                self._store.piece_ahead(number, drift, parts[number])

        return deliver

    def _deliver_whole(self, places: list[tuple[Tensor, float]]) -> None:
        for drift in {drift for _, drift in places}:
            first, *others = [payload for payload, its in places if its == drift]
            self._parameters.encode(self._store.ahead(drift, self._scratch[1]), first)
            for payload in others:
                payload.copy_(first)


def _sum(first: Contribution, second: Contribution) -> Contribution:
    """Both, by their shares: one that needs no share any more, in the memory of the first."""
    if first.share != 1:
        first.gradient.mul_(first.share)
    first.gradient.add_(second.gradient, alpha=second.share)
    statistics = torch.add(first.statistics * first.share, second.statistics, alpha=second.share)
    return Contribution(first.gradient, statistics, 1.0)

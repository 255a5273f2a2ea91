"""One server's slice behind calls: the workers' buffers, the order of steps, and the threads that apply them."""

import threading
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor
from torch.futures import Future

from psys.cores import available_cores
from psys.ps.messages import Step
from psys.ps.slice import BlockFunction, RunBlocks, Slice, run_in_turn
from psys.ps.slots import BufferLayout, Slot
from psys.ps.store import SliceState
from psys.transport.protocol import BufferAddress
from psys.transport.shared_memory import MappedBuffer

T = TypeVar("T")

_BLOCKS_PER_THREAD = 16  # fewer blocks are not worth waking a thread for


class ShardServer:
    """A ShardService over one Slice.

    Steps are applied one call after the other. Buffers are attached, filled and read meanwhile: a worker's slot is the
    worker's until it calls push_pull, and again from the reply on.
    """

    def __init__(self, own: Slice, layout: BufferLayout) -> None:
        self._slice, self.layout = own, layout
        self._buffers = _WorkerBuffers(layout)
        self._lock = threading.Lock()  # of the slice
        self._failed = False  # a step failed midway: no step may follow it, and nothing may be read
        self.finished = threading.Event()
        self.run_complete = False  # known once `finished` is set
        self._pool = ThreadPoolExecutor(thread_name_prefix="psys-step")  # starts no thread until one is needed

    def attach(self, worker: str, address: BufferAddress, nbytes: int) -> bool:
        if nbytes != self.layout.nbytes:
            raise ValueError(f"{worker} has a buffer of {nbytes} bytes, this run's have {self.layout.nbytes}")
        return self._buffers.attach(worker, address)

    def put(self, worker: str, offset: int, chunk: Tensor) -> None:
        self._buffers.of(worker).memory[offset : offset + len(chunk)] = chunk

    def get(self, worker: str, offset: int, length: int) -> Tensor:
        return self._buffers.of(worker).chunk(offset, offset + length)

    def advance(self, steps: Sequence[Step]) -> "Future[None]":
        with self._lock:
            self._check()
            self._failed = True
            waiting = {worker for step in steps for worker in step.readers}
            self._slice.apply(steps, self._buffers, self._run_blocks(waiting))
            self._failed = False
        return _done(None)

    def read_state(self, step: int, name: str, start: int, stop: int) -> "Future[Tensor]":
        vector = self.kept(step).vectors()[name]
        # Made through numpy the chunk owns its storage; torch RPC would send a view's whole storage.
        return _done(torch.from_numpy(vector.numpy()[start:stop]))

    def kept(self, step: int) -> SliceState:
        """The state that `step` kept."""
        with self._lock:
            self._check()
            return self._slice.kept(step)

    def forget_state(self, step: int) -> None:
        with self._lock:
            self._slice.forget(step)

    def write_state(self, version: int, name: str, start: int, values: Tensor) -> "Future[None]":
        with self._lock:
            self._slice.store.write_state(version, name, start, values)
        return _done(None)

    def restore(self, state: SliceState) -> None:
        """Take over a whole state. Raises ValueError if it is of another model or optimizer."""
        with self._lock:
            self._slice.store.restore(state)

    def state_sizes(self) -> dict[str, int]:
        """Elements of each vector of the slice's state, by name."""
        return self._slice.store.state_sizes()

    def finish(self, complete: bool) -> None:
        self.run_complete = complete
        self.finished.set()

    def _check(self) -> None:
        assert not self._failed, "an earlier step failed midway"

    def _run_blocks(self, waiting: Set[str]) -> RunBlocks:
        """Divide the blocks among this thread and, for large models, the cores of workers that wait for this step."""
        helpers = self._idle_cores(waiting)
        if not helpers:
            return run_in_turn

        def run(count: int, functions: Sequence[BlockFunction]) -> None:
            numbers = iter(range(count))

            def work() -> None:
                for number in numbers:  # a shared iterator: each number goes to one thread
                    for function in functions:
                        function(number)

            working = [self._pool.submit(work) for _ in range(helpers)]
            try:
                work()
            finally:
                errors = [each.exception() for each in working]  # after this no thread writes any more
            for error in filter(None, errors):
                raise error

        return run

    def _idle_cores(self, waiting: Set[str]) -> int:
        most = self._slice.blocks // _BLOCKS_PER_THREAD
        if most < 2:
            return 0
        here = self._buffers.local()
        idle = available_cores() * len(here & waiting) // len(here) if here else available_cores()
        return max(0, min(idle, most) - 1)


class _WorkerBuffers:
    """The attached workers' buffers (see ps.slice.Buffers). Each call may come from any thread."""

    def __init__(self, layout: BufferLayout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._attached: dict[str, tuple[BufferAddress, bool]] = {}  # and whether this server can map the buffer
        self._mapped: dict[str, MappedBuffer] = {}

    def attach(self, worker: str, address: BufferAddress) -> bool:
        with self._lock:
            # The buffer of a worker that reconnects may hold a gradient that was accepted before.
            known = worker in self._mapped and self._attached[worker][0] == address
            buffer = self._mapped[worker] if known else MappedBuffer(self._layout, address)
            self._mapped[worker], self._attached[worker] = buffer, (address, buffer.shared)
            return buffer.shared

    def of(self, worker: str) -> MappedBuffer:
        """The worker's buffer, mapped again if it was released. Raises KeyError of a worker that never attached."""
        if (found := self._mapped.get(worker)) is not None:
            return found
        with self._lock:
            if worker not in self._mapped:
                address, shared = self._attached[worker]
                self._mapped[worker] = MappedBuffer(self._layout, address if shared else None)
            return self._mapped[worker]

    def gradients(self, worker: str) -> Sequence[Slot]:
        buffer = self._mapped[worker]  # one mapped anew would hold no gradient
        if self._attached[worker][1] and not buffer.shared:
            raise RuntimeError(f"the memory of {worker} cannot be mapped any more")
        return buffer.slots

    def parameters(self, worker: str) -> Sequence[Slot]:
        return self.of(worker).slots

    def release(self, worker: str) -> None:
        with self._lock:
            self._mapped.pop(worker, None)

    def local(self) -> Set[str]:
        """Workers of this host."""
        with self._lock:
            return {worker for worker, buffer in self._mapped.items() if buffer.shared}


def _done(value: T) -> "Future[T]":
    future: Future[T] = Future()
    future.set_result(value)
    return future

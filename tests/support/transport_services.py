"""Services behind a transport under test: real slices, and a coordinator that makes an update of every gradient."""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.futures import Future, collect_all

from psys.cluster.shard_server import ShardServer
from psys.ps.messages import Grant, Lease, Push, Reader, Step, Update
from psys.ps.optimizer import OptimizerConfig
from psys.ps.partition import partition
from psys.ps.slice import Slice
from psys.ps.slots import BufferLayout
from psys.ps.store import ParameterStore
from psys.transport.chunks import read_state, write_state
from psys.transport.protocol import RunRejectedError, ShardControl
from psys.transport.shared_memory import WorkerBuffer

NUMEL, STATISTICS = 3_000_001, 5
STRANGER = "worker99"
"""The worker that the coordinator does not know."""


def layout(servers: int) -> BufferLayout:
    return BufferLayout(partition(NUMEL, servers), STATISTICS, slots=2)


def shard_server(number: int, servers: int) -> ShardServer:
    """Server `number`'s part of the parameters 0, 1, 2 ..., stepped by plain SGD."""
    part = layout(servers).slices[number]
    statistics = torch.arange(float(STATISTICS)) if number == 0 else torch.zeros(0)
    plain = OptimizerConfig(momentum=0, nesterov=False)
    store = ParameterStore(torch.arange(float(NUMEL))[part], 0, statistics, plain)
    return ShardServer(Slice(number, store, "fp32", 0.01), layout(servers))


class AsyncCoordinator:
    """A CoordinatorService without ledger and policy: rate 1, slot 1, batches 0, 1, 2 ..."""

    def __init__(self, shards: Sequence[ShardControl]) -> None:
        self._shards, self._lock = shards, threading.Lock()
        self._steps = self._batches = self._version = 0

    def push_pull(self, worker: str, push: Push | None, holding: tuple[Lease, ...]) -> "Future[Grant]":
        if worker == STRANGER:
            raise RunRejectedError(f"{worker} is not in this run")
        answer: Future[Grant] = Future()
        with self._lock:
            updates: tuple[Update, ...] = ()
            if push is not None:
                self._version += 1
                updates = (Update(self._version, (push.lease,), (1.0,), (0,), 1.0, 1.0, 0.0, (1.0,)),)
            grant = Grant(Lease(self._batches, 0, worker, self._version, 1))
            self._batches += 1
            step = Step(self._steps, updates, {worker: Reader(1, 0.0)})
            self._steps += 1
            done = collect_all([shard.advance([step]) for shard in self._shards])
        done.add_done_callback(lambda _: answer.set_result(grant))
        return answer

    def check_states(self) -> None:
        """Have every server keep its state, read it in chunks, write another one and read that."""
        self._shards_advance(Step(self._steps, keep="checkpoint"))
        for number, (shard, part) in enumerate(zip(self._shards, layout(len(self._shards)).slices, strict=True)):
            sizes = {"parameters": part.stop - part.start, "statistics": STATISTICS if number == 0 else 0}
            before = read_state(shard, self._steps - 1, 0, sizes)
            assert torch.equal(before.parameters, torch.arange(float(NUMEL))[part])
            write_state(shard, before._replace(parameters=before.parameters + 1))
        self._shards_advance(Step(self._steps, keep="snapshot"))
        for number, (shard, part) in enumerate(zip(self._shards, layout(len(self._shards)).slices, strict=True)):
            sizes = {"parameters": part.stop - part.start, "statistics": STATISTICS if number == 0 else 0}
            after = read_state(shard, self._steps - 1, 0, sizes)
            assert torch.equal(after.parameters, torch.arange(float(NUMEL))[part] + 1)
            write_state(shard, after._replace(parameters=after.parameters - 1))

    def _shards_advance(self, step: Step) -> None:
        self._steps += 1
        for shard in self._shards:
            shard.advance([step]).wait()


def parameters_in(buffer: WorkerBuffer, slot: int) -> Tensor:
    """The whole vector in a slot of a float32 buffer, (NUMEL,)."""
    spans = buffer.layout.parameters(slot)
    return buffer.memory[spans[0].start : spans[-1].stop].view(torch.float32)

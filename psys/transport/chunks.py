"""Vectors that travel in bounded chunks, some of them under way at a time."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from psys.ps.messages import Grant, Lease, Push
from psys.ps.store import SliceState
from psys.transport.protocol import ShardControl
from psys.transport.shared_memory import WorkerBuffer

# Measured to be best: chunks of 1 to 8 MB, some of them under way at a time (benchmarks.wire).
CHUNK_BYTES, WINDOW = 4 << 20, 4


class Call(Protocol):
    """A call under way. torch.futures.Future is one."""

    def wait(self) -> Any:
        """Its result. Raises what the call raised."""


class ServerConnection(Protocol):
    """A worker's connection to one server (see ShardService and CoordinatorService for the methods)."""

    def start(self, method: str, *arguments: object) -> Call:
        """Begin a call. Its `wait` raises ServerUnavailableError or RunRejectedError."""


class WorkerClient:
    """A WorkerTransport over connections: it moves the buffer's bytes to and from servers that cannot map it."""

    def __init__(self, worker: str, buffer: WorkerBuffer, servers: Sequence[ServerConnection]) -> None:
        self._worker, self._buffer, self._servers = worker, buffer, servers
        self._remote: list[int] = []  # servers that cannot map the buffer

    def attach(self) -> None:
        address, nbytes = self._buffer.address, self._buffer.layout.nbytes
        calls = [server.start("attach", self._worker, address, nbytes) for server in self._servers]
        self._remote = [number for number, call in enumerate(calls) if not call.wait()]

    def push_pull(self, push: Push | None, holding: tuple[Lease, ...] = ()) -> Grant:
        layout = self._buffer.layout
        if push is not None and self._remote:
            self._put(layout.gradient(push.lease.slot), layout.statistics(push.lease.slot))
        grant: Grant = self._servers[0].start("push_pull", self._worker, push, holding).wait()
        if grant.lease is not None and self._remote:
            self._get(layout.parameters(grant.lease.slot), layout.statistics(grant.lease.slot))
        return grant

    def close(self) -> None: ...

    def _put(self, parts: Sequence[slice], statistics: slice) -> None:
        window = _Window()
        for number, start, stop in self._chunks(parts, statistics):
            chunk = self._buffer.chunk(start, stop)
            window.add(self._servers[number].start("put", self._worker, start, chunk), None)
        window.drain()

    def _get(self, parts: Sequence[slice], statistics: slice) -> None:
        window = _Window()
        for number, start, stop in self._chunks(parts, statistics):
            call = self._servers[number].start("get", self._worker, start, stop - start)
            window.add(call, self._buffer.memory[start:stop])
        window.drain()

    def _chunks(self, parts: Sequence[slice], statistics: slice) -> Iterator[tuple[int, int, int]]:
        """Server, first and last byte of every chunk; server 0 has the statistics."""
        for number in self._remote:
            for span in (parts[number], statistics) if number == 0 else (parts[number],):
                for start, stop in _spans(span.start, span.stop, CHUNK_BYTES):
                    yield number, start, stop


def read_state(control: ShardControl, step: int, version: int, sizes: dict[str, int]) -> SliceState:
    """The state that `step` kept on a server, after which the server forgets it. `sizes`: elements by vector's name."""
    vectors = {name: torch.empty(numel) for name, numel in sizes.items()}
    window = _Window()
    for name, vector in vectors.items():
        for start, stop in _spans(0, len(vector), CHUNK_BYTES // vector.element_size()):
            window.add(control.read_state(step, name, start, stop), vector[start:stop])
    window.drain()
    control.forget_state(step)
    parameters, statistics = vectors.pop("parameters"), vectors.pop("statistics")
    return SliceState(version, parameters, statistics, vectors)


def write_state(control: ShardControl, state: SliceState) -> None:
    """Make a server's slice what `state` says. Raises what the calls raise."""
    window = _Window()
    for name, vector in state.vectors().items():
        for start, stop in _spans(0, len(vector), CHUNK_BYTES // vector.element_size()):
            # Made through numpy the chunk owns its storage; torch RPC would send a view's whole storage.
            values = torch.from_numpy(vector.numpy()[start:stop])
            window.add(control.write_state(state.version, name, start, values), None)
    window.drain()


def _spans(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


class _Window:
    """Calls under way, WINDOW at most, whose results are copied to their places."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Call, Tensor | None]] = deque()

    def add(self, call: Call, place: Tensor | None) -> None:
        self._calls.append((call, place))
        if len(self._calls) == WINDOW:
            self._finish_oldest()

    def drain(self) -> None:
        while self._calls:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        call, place = self._calls.popleft()
        result = call.wait()
        if place is not None:
            place.copy_(result)

"""The wire: torch RPC as a hub with spokes, in which workers know the servers alone and come and go as they like.

The stock agent makes every member know every other, so a dead one blocks all who join. Here each process builds its
agent on a private store that names only those it calls: the servers for a worker, the other servers for the first.
They learn the addresses at the door. RPC runs what it receives: only trusted hosts may reach it. This is the only file
that imports torch.distributed.rpc; tests/integration/test_torch_rpc.py holds the contract.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor
from torch.distributed import rpc
from torch.distributed.rpc import TensorPipeAgent, api, backend_registry
from torch.futures import Future

from psys.ps.coordinator import Grant
from psys.ps.ledger import Lease
from psys.ps.store import Snapshot, StoreState
from psys.transport.address import only_interface_of
from psys.transport.protocol import Advance, CoordinatorService, Push, ShardService
from psys.transport.shared_memory import Lane, LaneAddress

_UNLIMITED = 0  # seconds, in RPC's language

# Not TensorPipe's shared-memory transport: its thread never sleeps, in every process, and takes half of two cores.
_TRANSPORTS, _CHANNELS = ["uv"], ["cma", "basic"]
# Measured to be best: chunks of 1 to 8 MB, some of them under way at a time (benchmarks.wire).
_CHUNK_BYTES, _WINDOW = 4 << 20, 4

_private: dist.Store | None = None
_rank: int | None = None
_joined = 0  # times that this process has built an agent
_coordinator: CoordinatorService | None = None
_shard: ShardService | None = None


def serve(number: int, listen: str, peers: Sequence[str] = (), coordinator: CoordinatorService | None = None) -> str:
    """Be server `number` on the interface of the address `listen`; its own RPC address. Answers once there is a shard.

    Server 0 has the `coordinator` and the addresses of the other servers as `peers`. Raises PsysError if `listen` is no
    address of this host.
    """
    global _coordinator
    _coordinator = coordinator
    only_interface_of(listen)
    name = f"server{number}"
    _join_group(name, number, {f"server{i}": address for i, address in enumerate(peers, 1)}, threads=1)
    assert _private is not None
    return _private.get(f"{_prefix()}addrs/{name}").decode()


def offer(shard: ShardService) -> None:
    """Let this server's slice be called."""
    global _shard
    _shard = shard


class RemoteShard:
    """Another server's `ShardControl`."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._server = f"server{number}"

    def advance(self, steps: Sequence[Advance]) -> "Future[None]":
        return self._call(_advance, steps)

    def snapshot(self) -> "Future[Snapshot]":
        return self._call(_snapshot)

    def state(self) -> "Future[StoreState]":
        return self._call(_state)

    def restore(self, state: StoreState) -> None:
        self._call(_restore, state).wait()

    def finish(self) -> None:
        """The run is over: the server may end."""
        with contextlib.suppress(RuntimeError):  # it may be gone before its answer is
            rpc.rpc_sync(self._server, _finish)

    def _call(self, function: Callable[..., Any], *arguments: object) -> "Future[Any]":
        try:
            return cast("Future[Any]", rpc.rpc_async(self._server, function, args=arguments, timeout=_UNLIMITED))
        except RuntimeError as error:  # a server known to be gone is no other news than one whose answer fails
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed


class Client:
    """A worker's calls to the servers. Each raises RuntimeError once a server is gone, or silent for the timeout."""

    def __init__(self, number: int, own_address: str, servers: Sequence[str], timeout_seconds: float) -> None:
        """`servers`: their RPC addresses. Raises PsysError if `own_address` is none of this host."""
        self._name, self._timeout = f"worker{number}", timeout_seconds
        self._servers = [f"server{i}" for i in range(len(servers))]
        self._lane: Lane | None = None
        self._apart: list[int] = []  # servers that cannot see the lane
        only_interface_of(own_address)
        # Agents know each other by number: the servers come first.
        rank = len(servers) + number
        _join_group(self._name, rank, dict(zip(self._servers, servers, strict=True)), threads=2)

    def attach(self, lane: Lane) -> None:
        """Make `lane` the memory of this worker's gradients and parameters."""
        self._lane = lane
        arguments = (self._name, lane.address, lane.layout.nbytes)
        calls = [rpc.rpc_async(s, _attach, args=arguments, timeout=self._timeout) for s in self._servers]
        self._apart = [number for number, call in enumerate(calls) if not call.wait()]

    def push_pull(self, push: Push | None, holding: tuple[Lease, ...] = ()) -> Grant:
        """Hand in the gradient in the lease's slot and wait for work; its parameters then stand in its slot."""
        if push is not None:
            self._put(push.lease.slot)
        arguments = (self._name, push, holding)
        grant = cast(Grant, rpc.rpc_sync(self._servers[0], _push_pull, args=arguments, timeout=self._timeout))
        if grant.lease is not None:
            self._get(grant.lease.slot)
        return grant

    def _put(self, slot: int) -> None:
        assert self._lane is not None
        layout, window = self._lane.layout, _Window()
        for number in self._apart:
            spans = [layout.gradient(slot)[number], *([layout.statistics(slot)] if number == 0 else [])]
            for start, stop in _chunks(spans):
                chunk = self._lane.chunk(start, stop)
                arguments = (self._name, start, chunk)
                call = rpc.rpc_async(self._servers[number], _put, args=arguments, timeout=self._timeout)
                window.add(call, None)
        window.drain()

    def _get(self, slot: int) -> None:
        assert self._lane is not None
        layout, window = self._lane.layout, _Window()
        for number in self._apart:
            spans = [layout.parameters(slot)[number], *([layout.statistics(slot)] if number == 0 else [])]
            for start, stop in _chunks(spans):
                arguments = (self._name, start, stop - start)
                call = rpc.rpc_async(self._servers[number], _get, args=arguments, timeout=self._timeout)
                window.add(call, self._lane[slice(start, stop)])
        window.drain()


class _Window:
    """Calls under way, some at a time, whose answers go to their places."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Future[Tensor], Tensor | None]] = deque()

    def add(self, call: "Future[Tensor]", place: Tensor | None) -> None:
        self._calls.append((call, place))
        if len(self._calls) == _WINDOW:
            self._finish_oldest()

    def drain(self) -> None:
        while self._calls:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        call, place = self._calls.popleft()
        answer = call.wait()
        if place is not None:
            place.copy_(answer)


def _chunks(spans: list[slice]) -> Iterator[tuple[int, int]]:
    for span in spans:
        for start in range(span.start, span.stop, _CHUNK_BYTES):
            yield start, min(start + _CHUNK_BYTES, span.stop)


def is_connection_error(error: RuntimeError) -> bool:
    """Whether `error`, raised by a call of a Client, says that the server cannot be reached, or does not answer."""
    return type(error) is RuntimeError and ("tensorpipe" in str(error) or "RPC" in str(error))


def close() -> None:
    """End this process's part in RPC, if it has one, without waiting for anybody else's."""
    if api._is_current_rpc_agent_set():
        rpc.shutdown(graceful=False)


def _join_group(name: str, rank: int, peers: dict[str, str], threads: int) -> None:
    """Build this process's agent, which knows the addresses of `peers`, numbered from the first server that is one.

    The rank of a process that comes again under another name stays: RPC does not want another, and nobody looks at it.
    """
    global _private, _rank, _joined
    _rank = rank if _rank is None else _rank
    # torchrun's variables would turn our rendezvous into a client of torchrun's own store.
    for variable in [v for v in os.environ if v.startswith("TORCHELASTIC_")]:
        del os.environ[variable]
    _private = dist.HashStore()
    _joined += 1
    prefix = _prefix()
    if peers:
        _private.set(prefix + "rpcIsStaticGroup", "false")
        for peer, address in peers.items():
            _private.set(f"{prefix}addrs/{peer}", address)
            _private.set(f"{prefix}names/{_number_of(peer)}", peer)
        everybody = "".join(f"{peer}-{_number_of(peer)}," for peer in peers)
        _private.set(prefix + "names/_ALL_WORKER_INFOS", everybody)
    options = rpc.TensorPipeRpcBackendOptions(
        init_method="psys://", num_worker_threads=threads, _transports=_TRANSPORTS, _channels=_CHANNELS
    )
    rpc.init_rpc(name, backend=_HUB, rank=_rank, rpc_backend_options=options)


def _prefix() -> str:
    """Where the latest init_rpc of this process keeps its keys: it counts them from 0."""
    return f"rpc_prefix_{_joined - 1}/"


def _number_of(server: str) -> int:
    return int(server.removeprefix("server"))


def _rendezvous(url: str, **unused: object) -> Iterator[tuple[dist.Store, int, int]]:
    assert _private is not None
    yield _private, -1, -1


def _build_agent(
    store: dist.Store,
    name: str,
    rank: int,
    world_size: int | None,
    rpc_backend_options: rpc.TensorPipeRpcBackendOptions,
) -> TensorPipeAgent:
    agent = TensorPipeAgent(store, name, rank, None, rpc_backend_options, {}, [])
    api._init_rpc_states(agent)
    return agent


dist.register_rendezvous_handler("psys", _rendezvous)
_HUB = backend_registry.register_backend("PSYS_HUB", rpc.TensorPipeRpcBackendOptions, _build_agent)


# What runs on a server when it is called.


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def _push_pull(worker: str, push: Push | None, holding: tuple[Lease, ...]) -> "Future[Grant]":
    assert _coordinator is not None
    try:
        return _coordinator.push_pull(worker, push, holding)
    finally:  # of the calls before it too
        if _calls_waiting() <= 0:
            _coordinator.settle()


def _calls_waiting() -> int:
    """Calls that have come and will run after this one: a server has one thread for them.

    One less for a moment, or one more, while another thread answers: then a call waits until the server's next look.
    """
    metrics = api._get_current_rpc_agent().get_metrics()
    unanswered, begun = int(metrics["agent.server_active_calls"]), int(metrics["agent.server_active_async_calls"])
    return unanswered - begun - 1


def _attach(worker: str, address: LaneAddress, nbytes: int) -> bool:
    return _settled().attach(worker, address, nbytes)


def _put(worker: str, offset: int, chunk: Tensor) -> None:
    _settled().put(worker, offset, chunk)


def _get(worker: str, offset: int, length: int) -> Tensor:
    return _settled().get(worker, offset, length)


def _settled() -> ShardService:
    """This server's slice, when no push_pull waits any more for the call that is being served."""
    assert _shard is not None
    if _coordinator is not None:
        _coordinator.settle()
    return _shard


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def _advance(steps: Sequence[Advance]) -> "Future[None]":
    assert _shard is not None
    return _shard.advance(steps)


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def _snapshot() -> "Future[Snapshot]":
    assert _shard is not None
    return _shard.snapshot()


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def _state() -> "Future[StoreState]":
    assert _shard is not None
    return _shard.state()


def _restore(state: StoreState) -> None:
    assert _shard is not None
    _shard.restore(state)


def _finish() -> None:
    assert _shard is not None
    _shard.finish()

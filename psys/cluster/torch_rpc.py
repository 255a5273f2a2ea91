"""The wire: torch RPC as a hub with spokes, in which workers know the servers alone and come and go as they like.

The stock agent makes every member know every other, so a dead one blocks all who join. Here each process builds its
agent on a private store that names only those it calls: the servers for a worker, the other servers for the first.
They find each other on a board, a TCPStore at the one port that a user knows. RPC runs what it receives: only trusted
hosts may reach it. This is the only file that imports torch.distributed.rpc; tests/integration/test_torch_rpc.py holds
the contract.
"""

import contextlib
import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import cast

import torch.distributed as dist
from torch import Tensor
from torch.distributed import rpc
from torch.distributed.rpc import TensorPipeAgent, api, backend_registry
from torch.futures import Future

from psys.cluster.address import only_interface_of, own_address_towards, wait_for_server
from psys.cluster.lane import Lane, LaneAddress
from psys.cluster.transport import Advance, CoordinatorService, Push, ShardService, Welcome, Work
from psys.errors import PsysError
from psys.ps.ledger import Lease
from psys.ps.store import Snapshot

_PREFIX = "rpc_prefix_0/"  # where the first init_rpc of a process keeps its keys
_UNLIMITED = 0  # seconds, in RPC's language: a synchronous push waits for its round

_GATHERING = timedelta(seconds=120)  # for all servers to come
# Not TensorPipe's shared-memory transport: its thread never sleeps, in every process, and takes half of two cores.
_TRANSPORTS, _CHANNELS = ["uv"], ["cma", "basic"]
# Measured to be best: chunks of 1 to 8 MB, some of them under way at a time (benchmarks.wire).
_CHUNK_BYTES, _WINDOW = 4 << 20, 4

_board: dist.Store | None = None
_private: dist.Store | None = None
_coordinator: CoordinatorService | None = None
_shard: ShardService | None = None


def open_board(listener: socket.socket, settings: str, servers: int) -> list["RemoteShard"]:
    """As server 0, take over `listener` and find the other servers. Raises PsysError when one does not come in time.

    They and the workers learn the run's `settings` here. Workers that come are kept waiting until `serve`.
    """
    global _board
    address, port = listener.getsockname()[:2]
    only_interface_of(address)
    # The older of the two store servers is the one that accepts a socket bound to a chosen address.
    _board = dist.TCPStore(
        *(address, port),
        is_master=True,
        master_listen_fd=listener.detach(),
        wait_for_workers=False,
        use_libuv=False,
        timeout=_GATHERING,
    )
    _board.set("address", address)
    _board.set("settings", settings)
    try:
        peers = _found_on_board(range(1, servers))
    except RuntimeError:
        raise PsysError(f"not all of the other {servers - 1} servers came within {_GATHERING.seconds} s") from None
    _join_group("server0", rank=0, peers=peers, threads=1)
    return [RemoteShard(f"server{number}") for number in range(1, servers)]


def serve(coordinator: CoordinatorService, shard: ShardService, servers: int) -> None:
    """As server 0 after `open_board`, answer workers in background threads until `close`."""
    global _coordinator, _shard
    assert _board is not None
    _coordinator, _shard = coordinator, shard
    _board.set("servers", str(servers))
    _post_on_board(0)


def settings_of(host: str, port: int, timeout_seconds: float = 60.0) -> str:
    """As another server, find the run at `host:port`: its settings. Raises PsysError when nothing answers in time."""
    board = _open_board_of(host, port, timeout_seconds)
    try:
        return str(board.get("settings").decode())
    except RuntimeError as error:
        raise _no_answer(host, port, timeout_seconds, error) from None


def serve_shard(shard: ShardService, number: int) -> None:
    """As server `number` > 0, after `settings_of`, answer in background threads until `close`."""
    global _shard
    assert _board is not None
    _shard = shard
    if os.environ.get("TP_SOCKET_IFNAME") == "lo":  # on the host of server 0, and open to others as it is
        del os.environ["TP_SOCKET_IFNAME"]
        only_interface_of(_board.get("address").decode())
    _join_group(f"server{number}", rank=number, peers={}, threads=1)
    _post_on_board(number)


def board_answers() -> bool:
    """Whether server 0 still lives, for another server, which nobody else would tell."""
    assert _board is not None
    try:
        return _board.check(["settings"])
    except RuntimeError:
        return False


class RemoteShard:
    """Another server's `ShardControl`."""

    def __init__(self, server: str) -> None:
        self._server = server

    def advance(self, step: Advance) -> "Future[None]":
        return cast("Future[None]", rpc.rpc_async(self._server, _advance, args=(step,), timeout=_UNLIMITED))

    def snapshot(self) -> "Future[Snapshot]":
        return cast("Future[Snapshot]", rpc.rpc_async(self._server, _snapshot, timeout=_UNLIMITED))

    def finish(self) -> None:
        """The run is over: the server may end."""
        with contextlib.suppress(RuntimeError):  # it may be gone before its answer is
            rpc.rpc_sync(self._server, _finish)


class Client:
    """A worker's connection to the servers. Every call raises RuntimeError once a server it needs is gone."""

    def __init__(self, number: int, servers: list[str]) -> None:
        self.number = number
        self._name, self._servers = f"worker{number}", servers
        self._lane: Lane | None = None
        self._apart: list[int] = []  # servers that cannot see the lane

    def hello(self) -> Welcome:
        return cast(Welcome, rpc.rpc_sync(self._servers[0], _hello))

    def attach(self, lane: Lane) -> None:
        """Make `lane` the memory of this worker's gradients and parameters."""
        self._lane = lane
        arguments = (self._name, lane.address)
        calls = [rpc.rpc_async(server, _attach, args=arguments) for server in self._servers]
        self._apart = [number for number, call in enumerate(calls) if not call.wait()]

    def push_pull(self, push: Push | None, holding: tuple[Lease, ...] = ()) -> Work:
        """Hand in the gradient in the lease's slot and wait for work; its parameters then stand in the lane."""
        if push is not None:
            self._put(push.lease.slot)
        arguments = (self._name, push, holding)
        work = cast(Work, rpc.rpc_sync(self._servers[0], _push_pull, args=arguments, timeout=_UNLIMITED))
        if work.lease is not None:
            self._get()
        return work

    def beat(self) -> None:
        rpc.rpc_sync(self._servers[0], _beat, args=(self._name,))

    def leave(self) -> None:
        rpc.rpc_sync(self._servers[0], _leave, args=(self._name,))

    def _put(self, slot: int) -> None:
        assert self._lane is not None
        layout, window = self._lane.layout, _Window()
        for number in self._apart:
            spans = [layout.gradient(slot)[number], *([layout.statistics_out(slot)] if number == 0 else [])]
            for start, stop in _chunks(spans):
                chunk = self._lane.chunk(start, stop)
                call = rpc.rpc_async(self._servers[number], _put, args=(self._name, start, chunk), timeout=_UNLIMITED)
                window.add(call, None)
        window.drain()

    def _get(self) -> None:
        assert self._lane is not None
        layout, window = self._lane.layout, _Window()
        for number in self._apart:
            spans = [layout.parameters[number], *([layout.statistics_in] if number == 0 else [])]
            for start, stop in _chunks(spans):
                arguments = (self._name, start, stop - start)
                call = rpc.rpc_async(self._servers[number], _get, args=arguments, timeout=_UNLIMITED)
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


def connect(host: str, port: int, timeout_seconds: float = 30.0) -> Client:
    """Join the run at `host:port`, waiting for it to come up. Raises PsysError when nothing answers in time."""
    board = _open_board_of(host, port, timeout_seconds)
    board.set_timeout(_GATHERING)
    try:
        servers = range(int(board.get("servers")))
        peers = _found_on_board(servers)
        number = board.add("workers", 1) - 1
    except RuntimeError as error:  # of which torch's DistError is one
        raise _no_answer(host, port, timeout_seconds, error) from None
    _join_group(f"worker{number}", rank=len(servers) + number, peers=peers, threads=2)
    return Client(number, list(peers))


def is_connection_error(error: RuntimeError) -> bool:
    """Whether `error`, raised by a call of a Client, says that the server cannot be reached any more."""
    return type(error) is RuntimeError and ("tensorpipe" in str(error) or "RPC" in str(error))


def close() -> None:
    """End this process's part in RPC, if it has one, without waiting for anybody else's."""
    if api._is_current_rpc_agent_set():
        rpc.shutdown(graceful=False)


def _join_group(name: str, rank: int, peers: dict[str, str], threads: int) -> None:
    """Build this process's agent, which knows the addresses of `peers`, numbered from the first server that is one."""
    global _private
    # torchrun's variables would turn our rendezvous into a client of torchrun's own store.
    for variable in [v for v in os.environ if v.startswith("TORCHELASTIC_")]:
        del os.environ[variable]
    _private = dist.HashStore()
    if peers:
        _private.set(_PREFIX + "rpcIsStaticGroup", "false")
        for peer, address in peers.items():
            _private.set(f"{_PREFIX}addrs/{peer}", address)
            _private.set(f"{_PREFIX}names/{_number_of(peer)}", peer)
        everybody = "".join(f"{peer}-{_number_of(peer)}," for peer in peers)
        _private.set(_PREFIX + "names/_ALL_WORKER_INFOS", everybody)
    options = rpc.TensorPipeRpcBackendOptions(
        init_method="psys://", num_worker_threads=threads, _transports=_TRANSPORTS, _channels=_CHANNELS
    )
    rpc.init_rpc(name, backend=_HUB, rank=rank, rpc_backend_options=options)


def _number_of(server: str) -> int:
    return int(server.removeprefix("server"))


def _open_board_of(host: str, port: int, timeout_seconds: float) -> dist.Store:
    global _board
    wait_for_server(host, port, timeout_seconds)
    try:
        timeout = timedelta(seconds=timeout_seconds)
        _board = dist.TCPStore(host, port, is_master=False, timeout=timeout, use_libuv=False)
    except RuntimeError as error:
        raise _no_answer(host, port, timeout_seconds, error) from None
    only_interface_of(own_address_towards(host, port))
    return _board


def _found_on_board(numbers: Iterable[int]) -> dict[str, str]:
    assert _board is not None
    return {f"server{number}": _board.get(f"servers/{number}").decode() for number in numbers}


def _post_on_board(number: int) -> None:
    assert _board is not None
    assert _private is not None
    _board.set(f"servers/{number}", _private.get(f"{_PREFIX}addrs/server{number}").decode())


def _no_answer(host: str, port: int, seconds: float, error: RuntimeError) -> PsysError:
    reason = str(error).splitlines()[0]
    return PsysError(f"no psys server answers at {host}:{port} within {seconds:.0f} s: {reason}")


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


def _hello() -> Welcome:
    assert _coordinator is not None
    return _coordinator.hello()


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def _push_pull(worker: str, push: Push | None, holding: tuple[Lease, ...]) -> "Future[Work]":
    assert _coordinator is not None
    return _coordinator.push_pull(worker, push, holding)


def _beat(worker: str) -> None:
    assert _coordinator is not None
    _coordinator.beat(worker)


def _leave(worker: str) -> None:
    assert _coordinator is not None
    _coordinator.leave(worker)


def _attach(worker: str, address: LaneAddress) -> bool:
    assert _shard is not None
    return _shard.attach(worker, address)


def _put(worker: str, offset: int, chunk: Tensor) -> None:
    assert _shard is not None
    _shard.put(worker, offset, chunk)


def _get(worker: str, offset: int, length: int) -> Tensor:
    assert _shard is not None
    return _shard.get(worker, offset, length)


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def _advance(step: Advance) -> "Future[None]":
    assert _shard is not None
    return _shard.advance(step)


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def _snapshot() -> "Future[Snapshot]":
    assert _shard is not None
    return _shard.snapshot()


def _finish() -> None:
    assert _shard is not None
    _shard.finish()

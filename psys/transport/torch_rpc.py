"""Torch RPC as a hub with spokes: workers know the servers alone, and come and go as they like.

The stock agent makes every member know every other member, so a dead one blocks all who join. Here each process builds
its agent on a private store that names only the processes it calls: the servers for a worker, the other servers for
server 0. They learn the addresses at the rendezvous. RPC runs what it receives: only trusted hosts may reach it.

This is the only file that imports torch.distributed.rpc. Torch has one RPC agent for a process, so the agent's state is
that of the module.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch.distributed as dist
from torch import Tensor
from torch.distributed import rpc
from torch.distributed.rpc import TensorPipeAgent, api, backend_registry
from torch.futures import Future

from psys.errors import TOO_MANY_OPEN_FILES
from psys.ps.messages import Step
from psys.transport.address import only_interface_of
from psys.transport.chunks import WorkerClient
from psys.transport.protocol import (
    CoordinatorService,
    RunRejectedError,
    ServerUnavailableError,
    ShardControl,
    ShardService,
)
from psys.transport.shared_memory import WorkerBuffer

_UNLIMITED = 0  # seconds, as RPC writes it
_FINISH_SECONDS = 10.0  # a server that does not answer by then is gone

# TensorPipe's shared-memory transport is left out: its thread never sleeps, in every process, and takes half of two
# cores.
_TRANSPORTS, _CHANNELS = ["uv"], ["cma", "basic"]

# A server's rank is its number, a worker's is above all servers'; ranks have 15 bits.
_FIRST_WORKER_RANK, _WORKER_RANKS = 64, 32_000

# A server has one thread for calls: several would pass Python's lock, and the caches of two cores, to each other.
_SERVER_THREADS, _WORKER_THREADS = 1, 2


class TorchRpcServer:
    """The ServerTransport of server `number`, on the interface of the address `listen`.

    `connect` is called for all other servers before `serve`: the agent learns its peers when it is built.
    """

    def __init__(self, number: int, listen: str) -> None:
        self._number, self._name, self._listen = number, f"server{number}", listen
        self._peers: dict[str, str] = {}

    def serve(self, shard: ShardService, coordinator: CoordinatorService | None = None) -> str:
        _services[self._name] = _Services(shard, coordinator)
        only_interface_of(self._listen)
        return _build(self._name, self._number, self._peers, _SERVER_THREADS)

    def connect(self, number: int, address: str) -> ShardControl:
        self._peers[f"server{number}"] = address
        return _RemoteShard(f"server{number}")

    def close(self) -> None:
        _close()
        _services.pop(self._name, None)


class TorchRpcWorker(WorkerClient):
    """A worker's WorkerTransport to the servers at the RPC addresses `servers`.

    A call that takes longer than `timeout_seconds` raises ServerUnavailableError. Raises PsysError if `own_address` is
    not this host's.
    """

    def __init__(
        self, number: int, own_address: str, servers: Sequence[str], timeout_seconds: float, buffer: WorkerBuffer
    ) -> None:
        only_interface_of(own_address)
        names = [f"server{i}" for i in range(len(servers))]
        worker = f"worker{number}"
        rank = _FIRST_WORKER_RANK + number % _WORKER_RANKS
        _build(worker, rank, dict(zip(names, servers, strict=True)), _WORKER_THREADS)
        super().__init__(worker, buffer, [_Connection(name, timeout_seconds) for name in names])

    def close(self) -> None:
        _close()


class _Connection:
    """A worker's ServerConnection."""

    def __init__(self, server: str, timeout_seconds: float) -> None:
        self._server, self._timeout = server, timeout_seconds

    def start(self, method: str, *arguments: object) -> "_Call":
        try:
            return _Call(_rpc(self._server, method, arguments, self._timeout))
        except RuntimeError as error:
            raise _unavailable(error) from None


class _Call:
    def __init__(self, future: "Future[Any]") -> None:
        self._future = future

    def wait(self) -> Any:
        try:
            answer = self._future.wait()
        except RuntimeError as error:  # a server's own errors come as a _Failure: this one is of the connection
            raise _unavailable(error) from None
        return _value(answer)


class _RemoteShard:
    """Server 0's ShardControl of another server. A future of a server that is gone raises."""

    def __init__(self, server: str) -> None:
        self._server = server

    def advance(self, steps: Sequence[Step]) -> "Future[None]":
        return self._call("advance", steps)

    def read_state(self, step: int, name: str, start: int, stop: int) -> "Future[Tensor]":
        return self._call("read_state", step, name, start, stop)

    def forget_state(self, step: int) -> None:
        self._call("forget_state", step)

    def write_state(self, version: int, name: str, start: int, values: Tensor) -> "Future[None]":
        return self._call("write_state", version, name, start, values)

    def finish(self, complete: bool) -> None:
        with contextlib.suppress(ServerUnavailableError):  # it may end before it answers
            self._call("finish", complete, timeout=_FINISH_SECONDS).wait()

    def _call(self, method: str, *arguments: object, timeout: float = _UNLIMITED) -> "Future[Any]":
        answer: Future[Any] = Future()

        def take(done: "Future[Any]") -> None:
            try:
                answer.set_result(_value(done.value()))
            except (RuntimeError, RunRejectedError) as error:
                answer.set_exception(_unavailable(error) if isinstance(error, RuntimeError) else error)

        try:
            _rpc(self._server, method, arguments, timeout).add_done_callback(take)
        except RuntimeError as error:  # to call a server known to be gone ends like a call that fails
            answer.set_exception(_unavailable(error))
        return answer


def _value(answer: Any) -> Any:
    if isinstance(answer, _Failure):
        raise RunRejectedError(answer.reason)
    return answer


_REASONS = {  # by a word of the first of the many lines in which torch describes a failure
    "too many open files": TOO_MANY_OPEN_FILES,
    "refused": "connection refused",
    "timeout": "no answer in time",
}


def _unavailable(error: RuntimeError) -> ServerUnavailableError:
    first = str(error).partition("\n")[0]
    return ServerUnavailableError(next((_REASONS[word] for word in _REASONS if word in first), "connection lost"))


# What runs on a server when it is called.


class _Services(NamedTuple):
    shard: ShardService
    coordinator: CoordinatorService | None


class _Failure(NamedTuple):
    """A server's own error, as a value: whatever torch raises is then a failure of the connection."""

    reason: str


_services: dict[str, _Services] = {}  # of the servers in this process, by name

_LATER = {"push_pull", "advance", "read_state", "write_state"}  # methods that return a Future


def _rpc(server: str, method: str, arguments: tuple[object, ...], timeout: float) -> "Future[Any]":
    function = _answer_later if method in _LATER else _answer
    call = rpc.rpc_async(server, function, args=(server, method, arguments), timeout=timeout)
    return cast("Future[Any]", call)


def _answer(server: str, method: str, arguments: tuple[object, ...]) -> Any:
    try:
        return _method(server, method)(*arguments)
    except Exception as error:
        return _failure(error)


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def _answer_later(server: str, method: str, arguments: tuple[object, ...]) -> "Future[Any]":
    try:
        return cast("Future[Any]", _method(server, method)(*arguments))
    except Exception as error:
        answer: Future[Any] = Future()
        answer.set_result(_failure(error))
        return answer


def _method(server: str, method: str) -> Callable[..., Any]:
    shard, coordinator = _services[server]
    found: Callable[..., Any] = getattr(coordinator if method == "push_pull" else shard, method)
    return found


def _failure(error: Exception) -> _Failure:
    return _Failure(" ".join(str(error).split()) or type(error).__name__)


# This process's agent.

_store: dist.Store | None = None  # names and addresses for the agent that is being built
_rank: int | None = None
_agents = 0  # agents that this process has built


def _build(name: str, rank: int, peers: dict[str, str], threads: int) -> str:
    """Build this process's agent, which knows the addresses of `peers`; returns its own address.

    The rank of a process that builds another agent stays: RPC does not want another one, and does not use it here.
    """
    global _store, _rank, _agents
    _rank = rank if _rank is None else _rank
    # torchrun's variables would turn our rendezvous into a client of torchrun's own store.
    for variable in [v for v in os.environ if v.startswith("TORCHELASTIC_")]:
        del os.environ[variable]
    _store = dist.HashStore()
    prefix = f"rpc_prefix_{_agents}/"  # init_rpc counts its calls in a process from 0, and keeps its keys below that
    _agents += 1
    if peers:
        _store.set(prefix + "rpcIsStaticGroup", "false")
        for peer, address in peers.items():
            _store.set(f"{prefix}addrs/{peer}", address)
            _store.set(f"{prefix}names/{_number_of(peer)}", peer)
        everybody = "".join(f"{peer}-{_number_of(peer)}," for peer in peers)
        _store.set(prefix + "names/_ALL_WORKER_INFOS", everybody)
    options = rpc.TensorPipeRpcBackendOptions(
        init_method="psys://", num_worker_threads=threads, _transports=_TRANSPORTS, _channels=_CHANNELS
    )
    try:
        rpc.init_rpc(name, backend=_HUB, rank=_rank, rpc_backend_options=options)
    except RuntimeError:
        os.close(os.open(os.devnull, os.O_RDONLY))  # raises OSError where no more files can be opened
        raise
    return _store.get(f"{prefix}addrs/{name}").decode()


def _close() -> None:
    """End this process's agent, if it has one, without waiting for other processes."""
    if api._is_current_rpc_agent_set():
        rpc.shutdown(graceful=False)


def _number_of(server: str) -> int:
    return int(server.removeprefix("server"))


def _rendezvous(url: str, **unused: object) -> Iterator[tuple[dist.Store, int, int]]:
    assert _store is not None
    yield _store, -1, -1


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

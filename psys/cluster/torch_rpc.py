"""The wire: torch RPC as a hub with spokes, in which workers know the server alone and come and go as they like.

The stock agent makes every member know every other, so a dead one blocks all who join. Here each worker builds its
agent on a private store that names only the server. RPC runs what it receives: only trusted hosts may reach it.
This is the only file that imports torch.distributed.rpc; tests/integration/test_torch_rpc.py holds the contract.
"""

import os
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import cast

import psutil
import torch.distributed as dist
from torch.distributed import rpc
from torch.distributed.rpc import TensorPipeAgent, api, backend_registry
from torch.futures import Future

from psys.cluster.transport import Push, Service, Welcome, Work
from psys.errors import PsysError

_SERVER = "server"
_PREFIX = "rpc_prefix_0/"  # where the first init_rpc of a process keeps its keys
_UNLIMITED = 0  # seconds, in RPC's language: a synchronous push waits for its round

_RETRY_SECONDS = 0.2
# Not TensorPipe's shared-memory transport: its thread never sleeps, in every process, and takes half of two cores.
_TRANSPORTS, _CHANNELS = ["uv"], ["cma", "basic"]

_store: dist.Store | None = None
_service: Service | None = None


def listen(address: str, port: int) -> socket.socket:
    """A socket that workers will join at. Raises PsysError when the port is taken or the address is not this host's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(1024)
    except (OSError, UnicodeError, TypeError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "no such address"
        where = f"{address} port {port}"
        raise PsysError(f"cannot listen on {where}: {reason}; choose another --port or --listen") from None
    return listener


def serve(service: Service, listener: socket.socket) -> None:
    """Answer workers at `listener` (taken over) with `service`, in background threads, until `close`."""
    global _store, _service
    _service = service
    address, port = listener.getsockname()[:2]
    _only_interface_of(address)
    # The older of the two store servers is the one that accepts a socket bound to a chosen address.
    _store = dist.TCPStore(
        address, port, is_master=True, master_listen_fd=listener.detach(), wait_for_workers=False, use_libuv=False
    )
    _init(_SERVER, rank=0, threads=8)


class Client:
    """A worker's connection to the server. Every call raises RuntimeError once the server is gone."""

    def __init__(self, worker: int) -> None:
        self.worker = worker

    def hello(self) -> Welcome:
        return cast(Welcome, rpc.rpc_sync(_SERVER, _hello))

    def push_pull(self, push: Push | None) -> "Future[Work]":
        answer = rpc.rpc_async(_SERVER, _push_pull, args=(self.worker, push), timeout=_UNLIMITED)
        return cast("Future[Work]", answer)

    def beat(self) -> None:
        rpc.rpc_sync(_SERVER, _beat, args=(self.worker,))

    def leave(self) -> None:
        rpc.rpc_sync(_SERVER, _leave, args=(self.worker,))


def connect(host: str, port: int, timeout_seconds: float = 30.0) -> Client:
    """Join the server at `host:port`, waiting for it to come up. Raises PsysError when nothing answers in time."""
    global _store
    _wait_for_server(host, port, timeout_seconds)
    deadline = timedelta(seconds=timeout_seconds)
    try:
        shared = dist.TCPStore(host, port, is_master=False, timeout=deadline, use_libuv=False)
        _store = dist.HashStore()
        for key in (f"addrs/{_SERVER}", "rpcIsStaticGroup"):
            _store.set(_PREFIX + key, shared.get(_PREFIX + key).decode())
        number = shared.add("workers", 1)
    except RuntimeError as error:  # of which torch's DistError is one
        reason = str(error).splitlines()[0]
        raise PsysError(f"no psys server answers at {host}:{port} within {timeout_seconds:.0f} s: {reason}") from None
    _store.set(_PREFIX + "names/0", _SERVER)
    _store.set(_PREFIX + "names/_ALL_WORKER_INFOS", f"{_SERVER}-0,")
    _only_interface_of(_own_address_towards(host, port))
    _init(f"worker{number}", rank=number, threads=2)
    return Client(number - 1)


def is_connection_error(error: RuntimeError) -> bool:
    """Whether `error`, raised by a call of a Client, says that the server cannot be reached any more."""
    return type(error) is RuntimeError and ("tensorpipe" in str(error) or "RPC" in str(error))


def close() -> None:
    """End this process's part in RPC without waiting for anybody else's."""
    rpc.shutdown(graceful=False)


def _init(name: str, rank: int, threads: int) -> None:
    # torchrun's variables would turn our rendezvous into a client of torchrun's own store.
    for variable in [v for v in os.environ if v.startswith("TORCHELASTIC_")]:
        del os.environ[variable]
    options = rpc.TensorPipeRpcBackendOptions(
        init_method="psys://", num_worker_threads=threads, _transports=_TRANSPORTS, _channels=_CHANNELS
    )
    rpc.init_rpc(name, backend=_HUB, rank=rank, rpc_backend_options=options)


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


def _wait_for_server(host: str, port: int, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=timeout_seconds).close()
        except (OSError, UnicodeError, OverflowError) as error:
            passing = isinstance(error, OSError) and not isinstance(error, socket.gaierror)
            if not passing or time.monotonic() > deadline:
                reason = getattr(error, "strerror", None) or str(error)
                raise PsysError(
                    f"no server at {host}:{port} ({reason}): is it running, and is that its port?"
                ) from None
            time.sleep(_RETRY_SECONDS)
        else:
            return


def _own_address_towards(host: str, port: int) -> str:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # sends nothing: it only looks up the route
        return str(probe.getsockname()[0])


def _only_interface_of(address: str) -> None:
    """Keep TensorPipe's own ports on the interface that has `address`; by itself it would take the host name's."""
    if address in ("0.0.0.0", "::"):
        return
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address == address for a in addresses):
            os.environ["TP_SOCKET_IFNAME"] = name
            return


# What runs on the server when a worker calls.


def _hello() -> Welcome:
    assert _service is not None
    return _service.hello()


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def _push_pull(worker: int, push: Push | None) -> "Future[Work]":
    assert _service is not None
    return _service.push_pull(worker, push)


def _beat(worker: int) -> None:
    assert _service is not None
    _service.beat(worker)


def _leave(worker: int) -> None:
    assert _service is not None
    _service.leave(worker)

"""The contract of a transport, on every implementation: in one process, and torch RPC between processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import psutil
import pytest
import torch

from psys.ps.messages import Lease, Push
from psys.ps.slots import BufferLayout
from psys.transport.in_process import InProcessNetwork, InProcessServer, InProcessWorker
from psys.transport.protocol import RunRejectedError, ServerUnavailableError, WorkerTransport
from psys.transport.shared_memory import WorkerBuffer
from psys.transport.torch_rpc import TorchRpcWorker
from tests.support.processes import ROOT
from tests.support.transport_services import (
    NUMEL,
    STATISTICS,
    STRANGER,
    AsyncCoordinator,
    layout,
    parameters_in,
    shard_server,
)

PROGRAM = ROOT / "tests" / "support" / "programs" / "transport_server.py"


@dataclass
class Cluster:
    """Servers over one transport."""

    connect: Callable[[int, WorkerBuffer], WorkerTransport]
    end_servers: Callable[[], None]
    processes: list["subprocess.Popen[str]"]


def in_process(servers: int, stack: ExitStack) -> Cluster:
    network = InProcessNetwork()
    transports = [InProcessServer(number, network) for number in range(servers)]
    shards = [shard_server(number, servers) for number in range(servers)]
    addresses = [transports[number].serve(shards[number]) for number in range(1, servers)]
    others = [transports[0].connect(number, address) for number, address in enumerate(addresses, 1)]
    coordinator = AsyncCoordinator([shards[0], *others])
    addresses.insert(0, transports[0].serve(shards[0], coordinator))
    coordinator.check_states()

    def end_servers() -> None:
        for transport in transports:
            transport.close()

    return Cluster(lambda number, buffer: InProcessWorker(number, network, addresses, buffer), end_servers, [])


def torch_rpc(servers: int, stack: ExitStack) -> Cluster:
    processes: list[subprocess.Popen[str]] = []

    def start(number: int, *others: str) -> str:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(number), str(servers), *others],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "ERROR"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(process.communicate)
        stack.callback(process.kill)
        processes.append(process)
        assert process.stdout
        return process.stdout.readline().strip()

    others = [start(number) for number in range(1, servers)]
    addresses = [start(0, *others), *others]

    def connect(number: int, buffer: WorkerBuffer) -> WorkerTransport:
        worker = TorchRpcWorker(number, "127.0.0.1", addresses, 60.0, buffer)
        stack.callback(worker.close)
        return worker

    def end_servers() -> None:
        for process in processes:
            process.kill()
            process.wait()

    return Cluster(connect, end_servers, processes)


@pytest.fixture(params=[in_process, torch_rpc], ids=["in_process", "torch_rpc"])
def start_cluster(request: pytest.FixtureRequest) -> Iterator[Callable[[int], Cluster]]:
    with ExitStack() as stack:
        yield lambda servers: request.param(servers, stack)


def hidden(buffer: WorkerBuffer) -> WorkerBuffer:
    """A buffer that servers cannot map, as if it were on another host."""
    buffer.address = buffer.address._replace(token=bytes(16))
    return buffer


@pytest.mark.parametrize(("servers", "mapped"), [(1, True), (2, True), (2, False)])
def test_gradients_reach_all_servers_and_parameters_come_from_all(
    start_cluster: Callable[[int], Cluster], servers: int, mapped: bool
) -> None:
    cluster = start_cluster(servers)
    buffer = WorkerBuffer(layout(servers))
    worker = cluster.connect(0, buffer if mapped else hidden(buffer))
    worker.attach()
    lease = worker.push_pull(None).lease
    assert lease == Lease(0, 0, "worker0", 0, 1)
    assert torch.equal(parameters_in(buffer, lease.slot), torch.arange(float(NUMEL)))
    assert buffer.slots[lease.slot].statistics.tolist() == list(range(STATISTICS))

    gradient = torch.arange(float(NUMEL)) % 100
    parameters_in(buffer, lease.slot).copy_(gradient)
    buffer.slots[lease.slot].statistics.fill_(3)
    lease = worker.push_pull(Push(lease, 0.0, 0, 1, 1.0)).lease
    assert lease is not None
    assert lease.version == 1
    assert torch.equal(parameters_in(buffer, lease.slot), torch.arange(float(NUMEL)) - gradient)
    assert buffer.slots[lease.slot].statistics.tolist() == [3] * STATISTICS


def test_a_reconnected_worker_keeps_its_buffer(start_cluster: Callable[[int], Cluster]) -> None:
    cluster = start_cluster(1)
    buffer = WorkerBuffer(layout(1))
    for attempt in range(2):
        worker = cluster.connect(attempt, buffer)
        worker.attach()
        lease = worker.push_pull(None).lease
        assert lease is not None
        assert torch.equal(parameters_in(buffer, lease.slot), torch.arange(float(NUMEL)))
        worker.close()


def test_an_unknown_worker_is_rejected(start_cluster: Callable[[int], Cluster]) -> None:
    worker = start_cluster(1).connect(int(STRANGER.removeprefix("worker")), WorkerBuffer(layout(1)))
    worker.attach()
    with pytest.raises(RunRejectedError, match="worker99 is not in this run"):
        worker.push_pull(None)


def test_a_buffer_of_another_size_is_rejected(start_cluster: Callable[[int], Cluster]) -> None:
    other = BufferLayout(layout(1).slices, STATISTICS, slots=5)
    worker = start_cluster(1).connect(0, WorkerBuffer(other))
    with pytest.raises(RunRejectedError, match="worker0 has a buffer of"):
        worker.attach()


def test_a_server_that_is_gone_is_unavailable(start_cluster: Callable[[int], Cluster]) -> None:
    cluster = start_cluster(1)
    worker = cluster.connect(0, WorkerBuffer(layout(1)))
    worker.attach()
    cluster.end_servers()
    with pytest.raises(ServerUnavailableError):
        worker.push_pull(None)


def test_all_ports_of_torch_rpc_are_on_loopback() -> None:
    with ExitStack() as stack:
        cluster = torch_rpc(2, stack)
        listening = [
            connection.laddr.ip
            for process in cluster.processes
            for connection in psutil.Process(process.pid).net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
    assert listening
    assert set(listening) == {"127.0.0.1"}

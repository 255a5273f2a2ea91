"""The contract with torch: what psys/cluster/torch_rpc.py relies on beyond the public interface, in real processes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen

import psutil
import pytest

from tests.support.processes import finished, reserved_port, started, wait_until

SERVERS = """
import sys, threading, torch
from torch.futures import Future, collect_all
from psys.transport import torch_rpc
from psys.transport.address import listen
from psys.run.config import RunConfig
from psys.transport.rendezvous import Door, knock
from psys.transport.shared_memory import Layout
from psys.transport.registration import Reception
from psys.cluster.shard_server import Shard
from psys.transport.protocol import Advance, Reader
from psys.ps.coordinator import Grant, Update
from psys.ps.ledger import Lease
from psys.ps.partition import partition
from psys.ps.store import OptimizerConfig, ParameterStore

class Pairs:
    # Answers a call only when a second one is there, as a synchronous round does.
    def __init__(self, reception, shards):
        self.reception, self.shards, self.lock, self.left = reception, shards, threading.Lock(), threading.Semaphore(0)
        self.waiting, self.steps = [], 0
        self.admit, self.ready = reception.admit, reception.ready
    def push_pull(self, worker, push, holding):
        answer = Future()
        print("called", flush=True)
        with self.lock:
            self.waiting.append((worker, push, answer))
            if len(self.waiting) == 2:
                self.answer()
        return answer
    def settle(self):
        pass
    def answer(self):
        workers, pushes, answers = zip(*self.waiting)
        updates = ()
        if all(pushes):
            leases = tuple(push.lease for push in pushes)
            updates = (Update(1, leases, (0.5, 0.5), (0, 0), 1.0, 1.0, 0.0),)
        step = Advance(self.steps, updates, dict.fromkeys(workers, Reader(1, 0.0)), ())
        self.waiting, self.steps = [], self.steps + 1
        def tell(done):
            for worker, answer in zip(workers, answers):
                answer.set_result(Grant(Lease(7, 0, worker, 0, 1)))
        collect_all([shard.advance([step]) for shard in self.shards]).add_done_callback(tell)
    def beat(self, worker):
        pass
    def leave(self, worker):
        self.left.release()
    def lost(self, name):
        pass

number, servers, port = map(int, sys.argv[1:])
layout = Layout(partition(3_000_001, servers), 5, slots=2)
part, statistics = layout.slices[number], torch.arange(5.0) if number == 0 else torch.zeros(0)
plain = OptimizerConfig(momentum=0, nesterov=False)
shard = Shard(number, ParameterStore(torch.arange(3_000_001.0)[part], 0, statistics, plain), layout, "fp32", 0.01)
torch_rpc.offer(shard)
if number:
    lifeline = knock("127.0.0.1", port, "", "server", 60, number)
    lifeline.say(ready=torch_rpc.serve(number, "127.0.0.1"))
    shard.finished.wait()
else:
    listener = listen("127.0.0.1", port)
    print(listener.getsockname()[1], flush=True)
    others = [torch_rpc.RemoteShard(other) for other in range(1, servers)]
    service = Pairs(Reception(RunConfig(servers=servers), "hash", "127.0.0.1"), [*others, shard])
    door = Door(listener, "", service)
    service.ready(0, torch_rpc.serve(0, "127.0.0.1", service.reception.others(), service))
    for _ in range(2):
        service.left.acquire()
    for other in others:
        assert len(other.snapshot().wait().parameters) == len(range(3_000_001)[layout.slices[1]])
        state = other.state().wait()
        assert list(state.optimizer) == []
        other.restore(state._replace(parameters=state.parameters + 1))
        assert torch.equal(other.snapshot().wait().parameters, state.parameters + 1)
        other.finish()
    door.close()
torch_rpc.close()
"""

CROWD = """
import threading, time
from torch.futures import Future
from psys.transport import torch_rpc
from psys.run.config import RunConfig
from psys.transport.rendezvous import Door, knock
from psys.transport.address import listen
from psys.transport.registration import Reception
from psys.ps.coordinator import Grant

class Crowd:
    # The first of three calls goes on when two others wait for it; answers come when all are settled.
    def __init__(self, reception):
        self.admit, self.ready, self.answers, self.left = reception.admit, reception.ready, [], threading.Semaphore(0)
    def push_pull(self, worker, push, holding):
        self.answers.append(Future())
        deadline = time.monotonic() + 60
        while len(self.answers) == 1 and torch_rpc._calls_waiting() < 2:
            assert time.monotonic() < deadline
        return self.answers[-1]
    def settle(self):
        print("settled", len(self.answers), flush=True)
        answers, self.answers = self.answers, []
        for answer in answers:
            answer.set_result(Grant(None))
    def beat(self, worker):
        pass
    def leave(self, worker):
        self.left.release()
    def lost(self, name):
        pass

listener = listen("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
crowd = Crowd(Reception(RunConfig(), "hash", "127.0.0.1"))
door = Door(listener, "", crowd)
crowd.ready(0, torch_rpc.serve(0, "127.0.0.1", (), crowd))
for _ in range(3):
    crowd.left.acquire()
door.close()
torch_rpc.close()
"""

ONE_OF_THE_CROWD = """
import sys
from psys.transport import torch_rpc
from psys.transport.rendezvous import knock

lifeline = knock("127.0.0.1", int(sys.argv[1]), "", "worker", 60)
admission = lifeline.admission
client = torch_rpc.Client(admission.number, lifeline.address, admission.servers, 60)
for _ in range(5):
    assert client.push_pull(None).lease is None
lifeline.say(left=True)
lifeline.close()
torch_rpc.close()
"""

CLIENT = """
import sys, torch
from psys.transport import torch_rpc
from psys.transport.rendezvous import knock
from psys.transport.shared_memory import Lane, Layout
from psys.transport.protocol import Push
from psys.ps.partition import partition

def whole(spans):
    return lane[slice(spans[0].start, spans[-1].stop)].view(torch.float32)

port, servers = map(int, sys.argv[1:3])
lifeline = knock("127.0.0.1", port, "", "worker", 60)
admission = lifeline.admission
client = torch_rpc.Client(admission.number, lifeline.address, admission.servers, 60)
assert admission.store_hash == "hash"
lane = Lane(Layout(partition(3_000_001, servers), 5, slots=2))
if "apart" in sys.argv:
    lane.address = lane.address._replace(token=bytes(16))
client.attach(lane)
print("joined", admission.number, flush=True)
try:
    work = client.push_pull(None)
except RuntimeError as error:
    print("lost", torch_rpc.is_connection_error(error), flush=True)
    if "again" not in sys.argv:
        sys.exit(3)
    torch_rpc.close()
    lifeline = knock("127.0.0.1", port, "", "worker", 60)
    admission = lifeline.admission
    client = torch_rpc.Client(admission.number + 10, lifeline.address, admission.servers, 60)
    client.attach(lane)
    work = client.push_pull(None)
assert work.lease.batch == 7
assert torch.equal(whole(lane.layout.parameters(work.lease.slot)), torch.arange(3_000_001.0))
assert torch.equal(lane.slots[work.lease.slot].statistics, torch.arange(5.0))
print("answered", flush=True)
if "train" in sys.argv:
    whole(lane.layout.gradient(work.lease.slot)).copy_(torch.arange(3_000_001.0) % 100)
    lane.slots[work.lease.slot].statistics.fill_(3)
    assert client.push_pull(Push(work.lease, 0.0, 0, 1, 1.0)).lease is not None
    expected = torch.arange(3_000_001.0) - torch.arange(3_000_001.0) % 100
    assert torch.equal(whole(lane.layout.parameters(work.lease.slot)), expected)
    assert lane.slots[work.lease.slot].statistics.tolist() == [3] * 5
    print("trained", flush=True)
if "leave" in sys.argv:
    lifeline.say(left=True)
lifeline.close()
torch_rpc.close()
"""


@contextmanager
def server(tmp_path: Path, servers: int = 1, port: int = 0) -> Iterator[tuple["Popen[str]", int]]:
    """Server 0 and its port; others, if any, come to it."""
    with ExitStack() as stack:
        process = stack.enter_context(started("-c", SERVERS, "0", str(servers), str(port), cwd=tmp_path))
        assert process.stdout
        port = int(process.stdout.readline())
        for number in range(1, servers):
            stack.enter_context(started("-c", SERVERS, str(number), str(servers), str(port), cwd=tmp_path))
        yield process, port


@contextmanager
def client(tmp_path: Path, port: int, *more: str, servers: int = 1) -> Iterator["Popen[str]"]:
    """A client that has joined and now waits for an answer."""
    with started("-c", CLIENT, str(port), str(servers), *more, cwd=tmp_path) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("joined"), finished(process).err
        yield process


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_a_killed_worker_leaves_nothing_behind_and_others_join_at_once(tmp_path: Path, stack: ExitStack) -> None:
    process, port = stack.enter_context(server(tmp_path))
    dead = stack.enter_context(client(tmp_path, port))
    assert process.stdout
    assert process.stdout.readline() == "called\n"
    dead.kill()
    dead.wait()
    # The dead one's call is still held: the next client completes its pair, the two after that make another.
    first = stack.enter_context(client(tmp_path, port))
    assert finished(first).code == 0
    second, third = (stack.enter_context(client(tmp_path, port)) for _ in range(2))
    assert (finished(second).out, finished(third).out) == ("answered\n", "answered\n")


def test_calls_that_wait_for_one_another_are_settled_once(tmp_path: Path, stack: ExitStack) -> None:
    process = stack.enter_context(started("-c", CROWD, cwd=tmp_path))
    assert process.stdout
    port = process.stdout.readline().strip()
    workers = [stack.enter_context(started("-c", ONE_OF_THE_CROWD, port, cwd=tmp_path)) for _ in range(3)]
    for worker in workers:
        done = finished(worker)
        assert done.code == 0, done.err
    assert finished(process).out == "settled 3\n" * 5


def test_workers_know_when_the_server_is_gone(tmp_path: Path, stack: ExitStack) -> None:
    process, port = stack.enter_context(server(tmp_path))
    waiting = stack.enter_context(client(tmp_path, port))
    process.kill()
    done = finished(waiting)
    assert (done.code, done.out) == (3, "lost True\n")


def test_all_ports_are_on_the_interface_asked_for(tmp_path: Path, stack: ExitStack) -> None:
    process, port = stack.enter_context(server(tmp_path))
    waiting = stack.enter_context(client(tmp_path, port))
    for each in (process, waiting):
        listening = [c for c in psutil.Process(each.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert listening
        assert {c.laddr.ip for c in listening} == {"127.0.0.1"}


def test_a_worker_finds_another_server_that_took_the_place_of_one_that_died(tmp_path: Path, stack: ExitStack) -> None:
    """The same process builds an agent again, under another name."""
    process, port = stack.enter_context(server(tmp_path))
    waiting = stack.enter_context(client(tmp_path, port, "again"))
    process.kill()
    process.wait()
    stack.enter_context(server(tmp_path, port=port))
    pair = stack.enter_context(client(tmp_path, port))
    done = finished(waiting)
    assert done.out == "lost True\nanswered\n", done.err
    assert finished(pair).code == 0


@pytest.mark.parametrize("servers", [1, 2])
def test_gradients_go_to_all_servers_and_parameters_come_from_all(
    tmp_path: Path, stack: ExitStack, servers: int
) -> None:
    """Through the memory of the one worker, which is seen, and in chunks from the other, which is apart."""
    _, port = stack.enter_context(server(tmp_path, servers))
    pair = [stack.enter_context(client(tmp_path, port, "train", *more, servers=servers)) for more in ([], ["apart"])]
    for each in pair:
        done = finished(each)
        assert (done.code, done.out) == (0, "answered\ntrained\n"), done.err


def test_servers_find_each_other_whoever_comes_first_and_end_together(tmp_path: Path, stack: ExitStack) -> None:
    port = stack.enter_context(reserved_port())
    second = stack.enter_context(started("-c", SERVERS, "1", "2", str(port), cwd=tmp_path))
    early = stack.enter_context(started("-c", CLIENT, str(port), "2", "leave", cwd=tmp_path))
    first = stack.enter_context(started("-c", SERVERS, "0", "2", str(port), cwd=tmp_path))
    late = stack.enter_context(client(tmp_path, port, "leave", servers=2))
    for each in (early, late):
        assert "answered" in finished(each).out
    for each in (first, second):
        done = finished(each)
        assert done.code == 0, done.err


def test_a_server_ends_when_its_run_does(tmp_path: Path, stack: ExitStack) -> None:
    process, port = stack.enter_context(server(tmp_path))
    pair = [stack.enter_context(client(tmp_path, port, "leave")) for _ in range(2)]
    for each in pair:
        assert "answered" in finished(each).out
    wait_until(lambda: process.poll() is not None, "the server to end")
    assert process.returncode == 0

"""The contract with torch: what psys/cluster/torch_rpc.py relies on beyond the public interface, in real processes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen

import psutil
import pytest

from tests.support.processes import finished, started, wait_until

SERVER = """
import sys, threading, torch
from torch.futures import Future
from psys.cluster import torch_rpc
from psys.cluster.transport import Welcome, Work
from psys.ps.store import Snapshot

class Pairs:
    '''Answers a push only when a second one is there, as a synchronous round does.'''
    def __init__(self):
        self.lock, self.waiting, self.left = threading.Lock(), [], threading.Event()
    def hello(self):
        return Welcome("{}", "hash")
    def push_pull(self, worker, push):
        answer = Future()
        print("called", flush=True)
        with self.lock:
            self.waiting.append(answer)
            together, self.waiting = (self.waiting, []) if len(self.waiting) == 2 else ([], self.waiting)
        for each in together:
            each.set_result(Work(None, Snapshot(7, torch.arange(650_000.0), torch.zeros(0))))
        return answer
    def beat(self, worker):
        pass
    def leave(self, worker):
        self.left.set()

service = Pairs()
listener = torch_rpc.listen("127.0.0.1", int(sys.argv[1]))
port = listener.getsockname()[1]
torch_rpc.serve(service, listener)
print(port, flush=True)
service.left.wait()
torch_rpc.close()
"""

CLIENT = """
import sys, torch
from psys.cluster import torch_rpc
client = torch_rpc.connect("127.0.0.1", int(sys.argv[1]))
assert client.hello().store_hash == "hash"
print("joined", client.worker, flush=True)
try:
    work = client.push_pull(None).wait()
except RuntimeError as error:
    print("lost", torch_rpc.is_connection_error(error), flush=True)
    sys.exit(3)
assert work.lease is None and work.snapshot.version == 7
assert torch.equal(work.snapshot.parameters, torch.arange(650_000.0))
print("answered", flush=True)
if "leave" in sys.argv:
    client.leave()
torch_rpc.close()
"""


@contextmanager
def server(tmp_path: Path, port: int = 0) -> Iterator[tuple["Popen[str]", int]]:
    with started("-c", SERVER, str(port), cwd=tmp_path) as process:
        assert process.stdout
        yield process, int(process.stdout.readline())


@contextmanager
def client(tmp_path: Path, port: int, *more: str) -> Iterator["Popen[str]"]:
    """A client that has joined and now waits for an answer."""
    with started("-c", CLIENT, str(port), *more, cwd=tmp_path) as process:
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


def test_a_server_ends_when_its_run_does(tmp_path: Path, stack: ExitStack) -> None:
    process, port = stack.enter_context(server(tmp_path))
    pair = [stack.enter_context(client(tmp_path, port, "leave")) for _ in range(2)]
    for each in pair:
        assert "answered" in finished(each).out
    wait_until(lambda: process.poll() is not None, "the server to end")
    assert process.returncode == 0

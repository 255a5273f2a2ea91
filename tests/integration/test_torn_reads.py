"""Workers in processes of their own push and pull without waiting for one another: each sees whole versions only.

Every gradient is the same at all parameters, which all start at 0: at any version they are equal to each other, and to
the number of updates. A worker that was given memory that a server is working on, or parts of two versions, would see
others.
"""

from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen

import pytest

from tests.support.processes import finished, started

NUMEL, STEPS, WORKERS = 3_000_000, 150, 3

SERVERS = """
import sys, torch
from pathlib import Path
from psys.transport import torch_rpc
from psys.transport.address import listen
from psys.run.checkpoint import Checkpoints
from psys.run.config import RunConfig
from psys.transport.rendezvous import Door, knock
from psys.transport.shared_memory import Layout
from psys.transport.registration import Reception
from psys.cluster.server import Server
from psys.cluster.shard_server import Shard
from psys.run.events import EventLog
from psys.ps.coordinator import Coordinator
from psys.ps.ledger import Ledger
from psys.ps.partition import partition
from psys.ps.policy import make_policy
from psys.ps.schedule import ScheduleConfig
from psys.ps.store import OptimizerConfig, ParameterStore

numel, steps, workers, servers, number, port = map(int, sys.argv[1:])
layout = Layout(partition(numel, servers), 1, slots=1)
part = layout.slices[number]
plain = OptimizerConfig(momentum=0, nesterov=False)
store = ParameterStore(torch.zeros(part.stop - part.start), 0, torch.zeros(0 if number else 1), plain)
shard = Shard(number, store, layout, "fp32", 0.01)
if number:
    lifeline = knock("127.0.0.1", port, "", "server", 60, number)
    torch_rpc.offer(shard)
    lifeline.say(ready=torch_rpc.serve(number, "127.0.0.1"))
    shard.finished.wait()
else:
    schedule = ScheduleConfig(kind="constant", learning_rate=1.0)
    ledger, policy = Ledger(1, steps, 1), make_policy("async", 0, 0)
    coordinator = Coordinator(ledger, policy, plain, schedule, 1, workers, layout.slots)
    listener = listen("127.0.0.1", port)
    print(listener.getsockname()[1], flush=True)
    config = RunConfig(mode="async", epochs=1, heartbeat_timeout=200, servers=servers)
    reception = Reception(config, "hash", "127.0.0.1")
    others = [torch_rpc.RemoteShard(other) for other in range(1, servers)]
    events, checkpoints = EventLog(Path("events.jsonl")), Checkpoints(Path("checkpoints"), keep=1)
    server = Server(config, reception, coordinator, [shard, *others], events, lambda stamped: None, checkpoints)
    door = Door(listener, "", server)
    torch_rpc.offer(shard)
    reception.ready(0, torch_rpc.serve(0, "127.0.0.1", reception.others(), server))
    proof = server.run(lambda status: False, lambda status: None)
    for other in others:
        other.finish()
    print("applied", proof.applied, flush=True)
torch_rpc.close()
"""

WORKER = """
import sys, torch
from psys.transport.shared_memory import Lane, Layout
from psys.transport.reconnect import Session
from psys.transport.protocol import Push
from psys.ps.partition import partition

numel, servers, port, seen = map(int, sys.argv[1:])
layout = Layout(partition(numel, servers), 1, slots=1)
lane = Lane(layout)
spans = layout.parameters(0)
parameters = gradient = lane[slice(spans[0].start, spans[-1].stop)].view(torch.float32)
if not seen:
    lane.address = lane.address._replace(token=bytes(16))
session = Session("127.0.0.1", port, "")
session.attach(lane)
lease, pulls, torn = session.push_pull(None).lease, 0, 0
while lease is not None:
    for _ in range(2):  # the second look is at what others do meanwhile
        low, high = (bound.item() for bound in torch.aminmax(parameters))
        torn += not low == high == lease.version
    pulls += 1
    gradient.fill_(-1)
    lease = session.push_pull(Push(lease, 0.0, 0, 1, 1.0)).lease
print(pulls, torn, flush=True)
session.close()
"""


@pytest.mark.parametrize("servers", [1, 2])
def test_no_worker_ever_sees_half_an_update(tmp_path: Path, servers: int) -> None:
    """Two workers share memory with the servers, the third is apart and moves its bytes in chunks."""
    with ExitStack() as stack:

        def start(*arguments: object) -> Popen[str]:
            return stack.enter_context(started("-c", *map(str, arguments), cwd=tmp_path))

        serving = [SERVERS, NUMEL, STEPS, WORKERS, servers]
        first = start(*serving, 0, 0)
        assert first.stdout
        port = first.stdout.readline().strip()
        for number in range(1, servers):
            start(*serving, number, port)
        workers = [start(WORKER, NUMEL, servers, port, int(number > 0)) for number in range(WORKERS)]
        ended = [finished(worker) for worker in workers]
        assert [done.code for done in ended] == [0] * WORKERS, [done.err for done in ended]
        assert finished(first).out == f"applied {STEPS}\n"
    pulls, torn = zip(*(map(int, done.out.split()) for done in ended), strict=True)
    assert torn == (0,) * WORKERS
    assert sum(pulls) == STEPS
    assert min(pulls) > 1  # nobody was alone

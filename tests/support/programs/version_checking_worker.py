"""A worker that compares all it reads with the version of its lease: version_checking_worker.py HOST PORT [hidden].

Every gradient is -1 everywhere and the run makes plain SGD steps of rate 1, which add 1 to every parameter. `hidden`:
the servers cannot map the worker's buffer. Prints how often the worker pulled, and how many pulls were wrong.
"""

import sys

import torch

from psys.models.registry import build
from psys.ps.messages import Push
from psys.run.assembly import initial_model
from psys.transport.buffered_model import BufferedModel
from psys.transport.join import RendezvousConnection
from psys.transport.protocol import WorkerTransport
from psys.transport.reconnect import ReconnectingWorker
from psys.transport.torch_rpc import TorchRpcWorker

torch.set_num_threads(1)
run = ReconnectingWorker(sys.argv[1], int(sys.argv[2]), token="")
classes = run.response.classes
model = BufferedModel(build(run.config.model, classes), run.config)
if sys.argv[3:] == ["hidden"]:
    model.buffer.address = model.buffer.address._replace(token=bytes(16))


def connect(connection: RendezvousConnection) -> WorkerTransport:
    response = connection.response
    return TorchRpcWorker(response.number, connection.address, response.servers, 60.0, model.buffer)


run.attach(connect)
expected, version = initial_model(run.config, classes).parameters, 0
pulls = wrong = 0
lease = run.push_pull(None).lease
while lease is not None:
    model.receive(lease.slot)
    slot = model.models[lease.slot]
    for _ in range(lease.version - version):
        expected += 1
    version = lease.version
    # Compared twice: between the comparisons other workers push, and the servers apply their gradients.
    wrong += not all(torch.equal(slot.parameters, expected) for _ in range(2))
    pulls += 1
    slot.gradient.fill_(-1)
    model.send(lease.slot)
    lease = run.push_pull(Push(lease, 0.0, 0, 1, 1.0)).lease
run.close()
print(pulls, wrong)

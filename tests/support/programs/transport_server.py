"""One server over torch RPC: transport_server.py NUMBER SERVERS [ADDRESS ...], for server 0 those of the others.

Prints its address, and serves until its standard input ends.
"""

import sys

from psys.transport.torch_rpc import TorchRpcServer
from tests.support.transport_services import AsyncCoordinator, shard_server

number, servers = int(sys.argv[1]), int(sys.argv[2])
transport = TorchRpcServer(number, "127.0.0.1")
shard = shard_server(number, servers)
if number == 0:
    others = [transport.connect(other, address) for other, address in enumerate(sys.argv[3:], 1)]
    coordinator = AsyncCoordinator([shard, *others])
    address = transport.serve(shard, coordinator)
    coordinator.check_states()
    print(address, flush=True)
    sys.stdin.read()
    for other in others:
        other.finish(complete=True)
else:
    print(transport.serve(shard), flush=True)
    shard.finished.wait()
transport.close()

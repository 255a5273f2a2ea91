"""One server of a run, without a supervisor: real_server.py RUN, or real_server.py HOST PORT for the other servers.

Server 0 prints its address, and at the end the number of batches applied.
"""

import sys
from pathlib import Path

from psys.cluster.roles import serve, serve_shard
from psys.run.directory import RunDirectory
from psys.transport.address import listen

if len(sys.argv) == 2:
    run = RunDirectory(Path(sys.argv[1]))
    workers = run.config().workers
    assert workers
    with listen("127.0.0.1", 0) as listener:
        print(*listener.getsockname(), flush=True)
        end = serve(run, listener, workers, stopped=lambda status: False, token="")
    print(end.account.applied)
else:
    serve_shard(sys.argv[1], int(sys.argv[2]), token="")

"""One attempt of torchrun at a run: what its ranks tell each other and the next attempt, through torchrun's store."""

import json
import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

_CONNECTING = timedelta(seconds=30)  # to torchrun, which has started this rank and may have been killed since
_PREPARING = timedelta(hours=24)  # the other ranks wait this long for rank 0 to prepare the store
_POLL_SECONDS, _ANSWER_SECONDS = 0.2, 5.0


class ServerAddress(NamedTuple):
    """Where the other ranks join the run, and what they do not know of its settings."""

    host: str
    port: int
    servers: int  # ranks that are servers
    threads: int | None  # of each worker


class Attempt:
    """This rank's connection to torchrun, whose store outlives its restarts of the ranks.

    When torchrun starts the ranks again, on all hosts, the ranks of the attempt before have ended. How often it has
    done so no rank knows: each host's torchrun counts its own failures only. Raises torch.distributed.DistError, as all
    methods do, if torchrun does not answer: it has ended.
    """

    def __init__(self) -> None:
        self._torchrun = os.getppid()
        run_id = os.environ.get("TORCHELASTIC_RUN_ID", "")
        self._server_key, self._run_key = f"psys/{run_id}/server", f"psys/{run_id}/run"
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = dist.TCPStore(*address, is_master=False, timeout=_CONNECTING)
        self._store.set_timeout(_PREPARING)

    @property
    def torchrun_ended(self) -> bool:
        """Whether the torchrun of this host, which started this rank, has ended."""
        return os.getppid() != self._torchrun

    # Of rank 0.

    def earlier_run(self) -> Path | None:
        """The directory of the run that an earlier attempt began; None in the first attempt."""
        return Path(self._store.get(self._run_key).decode()) if self._store.check([self._run_key]) else None

    def record_run(self, path: Path) -> None:
        """Tell the next attempt where the run is."""
        self._store.set(self._run_key, str(path.absolute()))

    def publish(self, server: ServerAddress | None) -> None:
        """Tell the other ranks where to join; None: there is nothing left to train, also for later attempts."""
        self._store.set(self._server_key, json.dumps(server))

    # Of the other ranks.

    def server(self) -> ServerAddress | None:
        """Wait until rank 0 has published what it is: an address that does not answer is that of an earlier attempt."""
        while True:
            published = json.loads(self._store.get(self._server_key))
            server = ServerAddress(*published) if published else None
            if server is None or _answers(server):
                return server
            time.sleep(_POLL_SECONDS)


def _answers(server: ServerAddress) -> bool:
    try:
        socket.create_connection((server.host, server.port), _ANSWER_SECONDS).close()
    except OSError:
        return False
    return True

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
_SERVER, _RUN = "psys/server", "psys/run"


class Rendezvous(NamedTuple):
    """Where the other ranks join the run, and what they do not know of its settings."""

    host: str
    port: int
    servers: int  # ranks that are servers
    threads: int | None  # of each worker


class Attempt:
    """This rank's connection to torchrun, whose store outlives its restarts of the ranks.

    Raises torch.distributed.DistError, as all methods do, if torchrun does not answer: it has ended.
    """

    def __init__(self) -> None:
        self._torchrun = os.getppid()
        self._number = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        self._address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = dist.TCPStore(*self._address, is_master=False, timeout=_CONNECTING)
        self._store.set_timeout(_PREPARING)

    @property
    def torchrun_ended(self) -> bool:
        """Whether the torchrun of this host, which started this rank, has ended."""
        return os.getppid() != self._torchrun

    # Of rank 0.

    def earlier_run(self) -> Path | None:
        """The directory of the run that an earlier attempt began; None in the first attempt."""
        return Path(self._store.get(_RUN).decode()) if self._number and self._store.check([_RUN]) else None

    def record_run(self, path: Path) -> None:
        """Tell the next attempt where the run is."""
        self._store.set(_RUN, str(path.absolute()))

    def publish(self, rendezvous: Rendezvous | None) -> None:
        """Tell the other ranks where to join; None: there is nothing to join."""
        self._store.set(_SERVER, json.dumps([self._number, rendezvous]))

    def withdraw(self) -> None:
        """Remove what an earlier attempt published."""
        self._store.delete_key(_SERVER)

    # Of the other ranks.

    def rendezvous(self) -> Rendezvous | None:
        """Wait for what rank 0 publishes in this attempt.

        Another host's torchrun may have restarted its ranks more or less often: there, the server that answers counts.
        """
        while True:
            number, published = json.loads(self._store.get(_SERVER))
            rendezvous = Rendezvous(*published) if published else None
            if os.environ.get("GROUP_RANK") == "0":
                current = number == self._number
            else:
                current = rendezvous is None or _answers(rendezvous)
            if current:
                return rendezvous
            time.sleep(_POLL_SECONDS)


def _answers(rendezvous: Rendezvous) -> bool:
    try:
        socket.create_connection((rendezvous.host, rendezvous.port), _ANSWER_SECONDS).close()
    except OSError:
        return False
    return True

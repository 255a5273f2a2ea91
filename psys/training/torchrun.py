"""A training as one of torchrun's ranks: the first are servers, the others workers."""

import json
import os
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from psys.cluster.roles import serve, serve_shard
from psys.cluster.worker import work
from psys.errors import PsysError
from psys.run.directory import RunDirectory
from psys.run.status import Status
from psys.training.settings import AUTO, TrainingConfig, is_loopback, over_run
from psys.training.signals import stop_signals_recorded
from psys.training.start import end_run, started_run
from psys.transport.address import listen

_CONNECTING = timedelta(seconds=30)  # to torchrun, which has started this rank and may have been killed since
_PREPARING = timedelta(hours=24)  # the other ranks wait this long for rank 0 to prepare the store
_POLL_SECONDS, _REACH_SECONDS = 0.2, 5.0
_SERVER, _RUN = "psys/server", "psys/run"  # keys of the agent's store, which outlives torchrun's restarts


def train_as_rank(config: TrainingConfig) -> RunDirectory | None:
    """Be the server or worker that torchrun's variables say. Returns the run on rank 0, None on the others.

    When torchrun has restarted its ranks, they continue the run of the attempt before. SIGINT and SIGTERM on rank 0
    stop the run (see `train`); the other ranks ignore them, for server 0 ends these ranks. Raises PsysError for what
    the user must mend.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        world = os.environ["WORLD_SIZE"]
        raise PsysError(f"WORLD_SIZE is {world} without torchrun: use torchrun, or --role worker --join HOST:PORT")
    torchrun, address = os.getppid(), (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    try:
        agent_store = dist.TCPStore(*address, is_master=False, timeout=_CONNECTING)
        agent_store.set_timeout(_PREPARING)
        if int(os.environ["RANK"]):
            _join_rank_0(config, agent_store)
            return None
        agent_store.delete_key(_SERVER)  # of the attempt before
        try:
            return _be_rank_0(config, agent_store, torchrun)
        except BaseException:
            _publish(agent_store, server=None)  # the other ranks may be waiting for it
            raise
    except dist.DistError:
        raise PsysError(
            "torchrun does not answer at {}:{}: it has ended since it started this rank".format(*address)
        ) from None


def _be_rank_0(config: TrainingConfig, agent_store: dist.TCPStore, torchrun: int) -> RunDirectory:
    again = None
    if _attempt() and agent_store.check([_RUN]):
        again = Path(agent_store.get(_RUN).decode())
    if config.resume not in (None, AUTO):
        config = over_run(config)
    world, servers = int(os.environ["WORLD_SIZE"]), config.servers - config.remote_servers
    workers = world - servers
    if workers < 1:
        raise PsysError(f"of torchrun's {world} processes {servers} are servers: none is left to be a worker")
    if config.workers not in (None, workers) and config.resume in (None, AUTO):
        raise PsysError(f"--workers {config.workers}, but of torchrun's {world} processes {workers} are workers")
    token, master = config.token(), os.environ["MASTER_ADDR"]
    if not token and not is_loopback(config.listen):
        raise PsysError("a server that others can reach needs a token: set PSYS_TOKEN, or --token-file, for every rank")
    several_hosts = world > int(os.environ["LOCAL_WORLD_SIZE"])
    if several_hosts and is_loopback(config.listen) and not is_loopback(master):
        raise PsysError("other hosts cannot reach a server on loopback: name this host's address with --listen")
    listener = listen(config.listen, config.port)
    with started_run(config, workers, again) as (run, trains):
        agent_store.set(_RUN, str(run.path.absolute()))
        if not trains:
            _publish(agent_store, server=None, over=True)
            end_run(run, complete=True)
            return run
        host, port = listener.getsockname()[:2]
        _publish(agent_store, server=[master if host in ("0.0.0.0", "::") else host, port, servers, config.threads])
        with stop_signals_recorded() as received:

            def stopped(status: Status) -> bool:
                return bool(received) or os.getppid() != torchrun  # it was killed

            end = serve(run, listener, workers, stopped, token)
        end_run(run, end.complete)
    return run


def _join_rank_0(config: TrainingConfig, agent_store: dist.TCPStore) -> None:
    rank = int(os.environ["RANK"])
    published = _published(agent_store)
    if published["server"] is None:
        if not published["over"]:
            sys.exit(2)  # rank 0 says why
        return
    host, port, servers, threads = published["server"]
    with stop_signals_recorded():  # and not acted on
        if rank < servers:
            serve_shard(host, port, config.token(), rank)
        else:
            servers_here = max(0, servers - (rank - int(os.environ["LOCAL_RANK"])))
            workers_here = int(os.environ["LOCAL_WORLD_SIZE"]) - servers_here
            threads = config.model_copy(update={"threads": threads}).threads_of_worker(workers_here)
            work(host, port, threads, config.token(), config.store if config.store.exists() else None)


def _attempt() -> int:
    """How often this rank's torchrun has restarted its ranks."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def _publish(agent_store: dist.TCPStore, server: list[Any] | None, over: bool = False) -> None:
    """Tell the other ranks: [host, port, servers, threads of a worker], or that there is no server to join."""
    agent_store.set(_SERVER, json.dumps({"attempt": _attempt(), "server": server, "over": over}))


def _published(agent_store: dist.TCPStore) -> dict[str, Any]:
    """What rank 0 published in this attempt.

    Another host's torchrun may have restarted its ranks more or less often: there a server that answers is the one.
    """
    while True:
        published: dict[str, Any] = json.loads(agent_store.get(_SERVER))
        if os.environ.get("GROUP_RANK") == "0":
            current = published["attempt"] == _attempt()
        else:
            current = published["server"] is None or _answers(*published["server"][:2])
        if current:
            return published
        time.sleep(_POLL_SECONDS)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), _REACH_SECONDS).close()
    except OSError:
        return False
    return True

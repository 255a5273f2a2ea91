"""A training as one of torchrun's ranks: the first are servers, the others workers."""

import os
from datetime import timedelta

import torch.distributed as dist

from psys.cluster.roles import serve, serve_shard
from psys.cluster.worker import work
from psys.errors import PsysError
from psys.run.directory import RunDirectory
from psys.training.local import end_run, start_run
from psys.training.settings import TrainingConfig, is_loopback
from psys.training.signals import stop_signals_recorded
from psys.transport.address import listen

_PREPARING = timedelta(hours=24)  # the other ranks wait this long for rank 0 to prepare the store
_SERVER_KEY = "psys/server"


def train_as_rank(config: TrainingConfig) -> RunDirectory | None:
    """Be the server or worker that torchrun's variables say. Returns the run on rank 0, None on the others.

    SIGINT and SIGTERM on rank 0 stop the run (see `train`); the other ranks ignore them, for server 0 ends these ranks.
    Raises PsysError for what the user must mend.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise PsysError(f"WORLD_SIZE is {world} without torchrun: use torchrun, or --role worker --join HOST:PORT")
    servers = config.servers - config.remote_servers
    workers = world - servers
    if workers < 1:
        raise PsysError(f"of torchrun's {world} processes {servers} are servers: none is left to be a worker")
    if config.workers not in (None, workers):
        raise PsysError(f"--workers {config.workers}, but of torchrun's {world} processes {workers} are workers")
    token, master = config.token(), os.environ["MASTER_ADDR"]
    if not token and not is_loopback(config.listen):
        raise PsysError("a server that others can reach needs a token: set PSYS_TOKEN, or --token-file, for every rank")
    ranks = dist.TCPStore(master, int(os.environ["MASTER_PORT"]), is_master=False, timeout=_PREPARING)
    if rank == 0:
        return _be_rank_0(config, workers, token, ranks)
    host, port = ranks.get(_SERVER_KEY).decode().rsplit(":", 1)
    with stop_signals_recorded():  # and not acted on
        if rank < servers:
            serve_shard(host, int(port), token, rank)
        else:
            servers_here = max(0, servers - (rank - int(os.environ["LOCAL_RANK"])))
            workers_here = int(os.environ["LOCAL_WORLD_SIZE"]) - servers_here
            work(host, int(port), config.threads_of_worker(workers_here), token)
    return None


def _be_rank_0(config: TrainingConfig, workers: int, token: str, ranks: dist.TCPStore) -> RunDirectory:
    master = os.environ["MASTER_ADDR"]
    several_hosts = int(os.environ["WORLD_SIZE"]) > int(os.environ["LOCAL_WORLD_SIZE"])
    if several_hosts and is_loopback(config.listen) and not is_loopback(master):
        raise PsysError("other hosts cannot reach a server on loopback: name this host's address with --listen")
    listener = listen(config.listen, config.port)
    host, port = listener.getsockname()[:2]
    run = start_run(config, workers)
    ranks.set(_SERVER_KEY, f"{master if host in ('0.0.0.0', '::') else host}:{port}")
    with stop_signals_recorded() as received:
        end = serve(run, listener, workers, lambda status: bool(received), token)
    end_run(run, complete=end.complete)
    return run

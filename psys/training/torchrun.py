"""A training as one of torchrun's ranks: the first are servers, the others workers."""

import os

import torch.distributed as dist

from psys.cluster.roles import serve, serve_shard
from psys.cluster.worker import leave_at_signals, work
from psys.errors import PsysError
from psys.run.directory import RunDirectory
from psys.run.status import Status
from psys.training.attempt import Attempt, ServerAddress
from psys.training.local import train
from psys.training.settings import AUTO, TrainingConfig, is_loopback, over_run
from psys.training.signals import stop_signals_recorded
from psys.training.start import end_run, started_run
from psys.transport.address import listen


def train_as_rank(config: TrainingConfig) -> RunDirectory | None:
    """Be the server or worker that torchrun's variables say. Returns the run on rank 0, None on the others.

    The only rank of a torchrun trains as `train` does. When torchrun has restarted its ranks, they continue the run of
    the attempt before. SIGINT, SIGTERM and SIGHUP on rank 0 stop the run; the other ranks ignore them, for server 0
    ends these ranks. Raises PsysError for what the user must mend.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise PsysError(f"WORLD_SIZE is {world} without torchrun: use torchrun, or --role worker --join HOST:PORT")
    if rank == 0 and config.resume not in (None, AUTO):
        config = over_run(config)
    servers = config.servers - config.remote_servers
    if rank == 0 and world > 1:
        _check_ranks(config, world, world - servers)
    try:
        attempt = Attempt()
        if world == 1:
            return train(config, attempt)
        if rank == 0:
            return _be_rank_0(config, servers, world - servers + config.remote_workers, attempt)
        _join_rank_0(config, rank, attempt)
    except dist.DistError:
        raise PsysError("torchrun does not answer: it has ended since it started this rank") from None
    return None


def _check_ranks(config: TrainingConfig, world: int, workers: int) -> None:
    if workers < 1:
        raise PsysError(f"of torchrun's {world} processes {world - workers} are servers: none is left to be a worker")
    if config.workers not in (None, workers + config.remote_workers) and config.resume in (None, AUTO):
        remote = f", and {config.remote_workers} are remote" if config.remote_workers else ""
        raise PsysError(
            f"--workers {config.workers}, but of torchrun's {world} processes {workers} are workers{remote}"
        )
    if not config.token() and not is_loopback(config.listen):
        raise PsysError("a server that others can reach needs a token: set PSYS_TOKEN, or --token-file, for every rank")
    several_hosts = world > int(os.environ["LOCAL_WORLD_SIZE"])
    if several_hosts and is_loopback(config.listen) and not is_loopback(os.environ["MASTER_ADDR"]):
        raise PsysError("other hosts cannot reach a server on loopback: name this host's address with --listen")


def _be_rank_0(config: TrainingConfig, servers: int, workers: int, attempt: Attempt) -> RunDirectory:
    with started_run(config, workers, attempt) as (run, trains):
        if trains:
            listener = listen(config.listen, config.port)
            host, port = listener.getsockname()[:2]
            host = os.environ["MASTER_ADDR"] if host in ("0.0.0.0", "::") else host
            attempt.publish(ServerAddress(host, port, servers, config.threads))
            with stop_signals_recorded() as received:

                def stopped(status: Status) -> bool:
                    return bool(received) or attempt.torchrun_ended

                trained = serve(run, listener, workers, stopped, config.token()).complete
        else:
            attempt.publish(None)
        end_run(run, not trains or trained)
    return run


def _join_rank_0(config: TrainingConfig, rank: int, attempt: Attempt) -> None:
    """Be another server or a worker of the run, if there is anything left to train."""
    server = attempt.server()
    if server is None:
        return
    host, port, servers, threads = server
    # The settings of a run to resume, its store included, are known to rank 0 only.
    own_store = config.resume in (None, AUTO) or "store" in config.model_fields_set
    with stop_signals_recorded():  # and not acted on
        if rank < servers:
            serve_shard(host, port, config.token(), rank)
            return
        if int(os.environ["GROUP_RANK"]):  # rank 0 is on another host: its torchrun may not have been told to stop
            leave_at_signals()
        servers_here = max(0, servers - (rank - int(os.environ["LOCAL_RANK"])))
        workers_here = int(os.environ["LOCAL_WORLD_SIZE"]) - servers_here
        threads = config.model_copy(update={"threads": threads}).threads_of_worker(workers_here)
        work(host, port, threads, config.token(), config.store if own_store and config.store.exists() else None)

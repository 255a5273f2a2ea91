"""One command's way through: prepare if need be, train on a cluster, evaluate, export."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import ip_address
from typing import Literal

import torch
import torch.distributed as dist
from pydantic import Field
from rich.console import Console

from psys.cluster.address import listen
from psys.cluster.config import RunConfig
from psys.cluster.node import serve, serve_shard
from psys.cluster.rundir import RunDirectory
from psys.cluster.supervisor import Supervisor
from psys.cluster.worker import work
from psys.compute.device import available_cores
from psys.data.holdout import holdout
from psys.data.store import PreparedStore
from psys.errors import PsysError
from psys.models.registry import build

_MOST_WORKERS = 8  # by default: more workers cost accuracy in async, so a person has to ask for them
_PREPARING = timedelta(hours=24)  # ranks wait this long for rank 0 to prepare the store


class LaunchConfig(RunConfig):
    """Train an image classifier with many workers around a parameter server."""

    role: Literal["all", "worker"] = "all"
    """all: servers and workers (of several processes of torchrun the first serve, the rest work); worker: join"""
    join: str | None = Field(None, pattern=r"^.+:\d+$")
    """HOST:PORT of the running server that a `worker` adds itself to"""


def launch(config: LaunchConfig) -> None:
    """Train as torchrun's variables and `role` say. Raises PsysError for what the user must mend."""
    if (config.role == "worker") != (config.join is not None):
        raise PsysError("--role worker and --join HOST:PORT go together")
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if config.join is not None:
        host, port = config.join.replace("[", "").replace("]", "").rsplit(":", 1)  # IPv6 comes in brackets
        store = config.store if "store" in config.model_fields_set else None
        work(host, int(port), _threads(config, processes_here), store)
    elif int(os.environ.get("WORLD_SIZE", 1)) > 1:
        _train_as_rank(config, processes_here)
    else:
        _train_here(config)


def _train_here(config: LaunchConfig) -> None:
    listener = listen(config.listen, config.port)
    workers = config.workers or min(torch.cuda.device_count() or available_cores(), _MOST_WORKERS)
    run = _start_run(config, workers)
    complete = Supervisor(run, listener, config.servers, workers, _threads(config, workers)).wait()
    _end_run(run, complete)


def _train_as_rank(config: LaunchConfig, processes_here: int) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise PsysError(f"WORLD_SIZE is {world} without torchrun: use torchrun, or --role worker --join HOST:PORT")
    workers = world - config.servers
    if workers < 1:
        raise PsysError(f"of torchrun's {world} processes {config.servers} are servers: none is left to work")
    if config.workers not in (None, workers):
        raise PsysError(f"--workers {config.workers}, but of torchrun's {world} processes {workers} are workers")
    master = os.environ["MASTER_ADDR"]
    board = dist.TCPStore(master, int(os.environ["MASTER_PORT"]), is_master=False, timeout=_PREPARING)
    if rank > 0:
        host, port = board.get("psys/server").decode().rsplit(":", 1)
        with _signals_taken():  # it is server 0 that ends a run, once what is being computed has arrived
            if rank < config.servers:
                serve_shard(rank, host, int(port))
            else:
                servers_here = max(0, config.servers - (rank - int(os.environ["LOCAL_RANK"])))
                work(host, int(port), _threads(config, processes_here - servers_here))
        return
    if world > processes_here and _is_loopback(config.listen) and not _is_loopback(master):
        raise PsysError("other hosts cannot reach a server on loopback: name this host's address with --listen")
    listener = listen(config.listen, config.port)
    host, port = listener.getsockname()[:2]
    run = _start_run(config, workers)
    board.set("psys/server", f"{master if host in ('0.0.0.0', '::') else host}:{port}")
    with _signals_taken() as asked:
        proof = serve(run, listener, workers, lambda status: bool(asked))
    _end_run(run, complete=not proof.unfinished)


def _end_run(run: RunDirectory, complete: bool) -> None:
    if not complete:
        saved = any(run.snapshots.iterdir())
        _say(
            f"stopped and saved: `psys evaluate {run.path}` makes the results"
            if saved
            else "stopped, nothing was trained"
        )
        sys.exit(130)
    # What draws takes half a second to import, for which training need not wait.
    from psys.results import finish

    finish(run, Console())


def _start_run(config: LaunchConfig, workers: int) -> RunDirectory:
    build(config.model, num_classes=2)  # an unknown name must not be found out after minutes of preparing
    if not config.store.exists():
        _prepare(config)
    # A damaged store or a holdout of everything is found out here, and not by every process of the run.
    holdout(PreparedStore.open(config.store).split("train").labels, config.validation_share, config.seed)
    settings = {name: getattr(config, name) for name in RunConfig.model_fields}
    run = RunDirectory.create(RunConfig(**{**settings, "workers": workers}))
    _say(f"{config.mode} training of {config.model} with {workers} workers; everything goes to {run.path}")
    return run


@contextlib.contextmanager
def _signals_taken() -> Iterator[list[int]]:
    """SIGINT and SIGTERM do not end this process meanwhile; the list grows by each that comes."""
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: asked.append(number)) for number in numbers]
    try:
        yield asked
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _is_loopback(host: str) -> bool:
    try:
        return all(ip_address(found[4][0]).is_loopback for found in socket.getaddrinfo(host, None))
    except OSError as error:
        raise PsysError(f"cannot resolve the address '{host}': {error.strerror}") from None


def _threads(config: LaunchConfig, workers_here: int) -> int:
    return config.threads or max(1, available_cores() // workers_here)


def _prepare(config: LaunchConfig) -> None:
    if config.source is None:
        raise PsysError(f"no prepared store at {config.store}, and no --source to prepare it from")
    _say(f"{config.store} is not there yet: preparing it from {config.source} (once)")
    # In a process of its own: training imports neither ray nor cv2.
    command = [sys.executable, "-m", "psys.cli", "prepare", "--source", config.source]
    done = subprocess.run([*command, "--stores", str(config.store.parent), "--name", config.store.name])
    if done.returncode:
        sys.exit(done.returncode)


def _say(text: str) -> None:
    print(f"psys: {text}", file=sys.stderr, flush=True)

"""One command's way through: prepare if need be, train on a cluster, evaluate, export."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from pydantic import Field
from rich.console import Console

from psys.cluster.processes import end_with_parent, prepare_children
from psys.cluster.roles import serve, serve_shard
from psys.cluster.supervisor import Supervisor
from psys.cluster.worker import leave_at_sigterm, work
from psys.compute.device import available_cores
from psys.config import Parser, parse
from psys.data.holdout import holdout
from psys.data.source_name import CIFAR10, SAMPLE, source_location
from psys.data.store import PREPARED_FROM, PreparedStore
from psys.errors import PsysError
from psys.models.registry import build
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory
from psys.run.events import EventLog
from psys.transport.address import listen

_MOST_WORKERS = 8  # by default: more workers cost accuracy in async, so a person has to ask for them
# What a run may go on with another of: it does not say what is computed.
_RESUMABLE = {
    *("name", "runs", "store", "source", "servers", "workers", "threads", "heartbeat_timeout", "patience"),
    *("checkpoint_every", "keep_checkpoints", "faults", "listen", "port"),
}
_PREPARING = timedelta(hours=24)  # ranks wait this long for rank 0 to prepare the store
_POLL_SECONDS, _SETTLE_SECONDS = 0.1, 10.0  # looks at the preparation, and its time to end when it is asked to


class LaunchConfig(RunConfig):
    """Train an image classifier with many workers around a parameter server."""

    role: Literal["all", "worker"] = "all"
    """all: servers and workers (of several processes of torchrun the first serve, the rest work); worker: join"""
    join: str | None = Field(None, pattern=r"^.+:\d+$")
    """HOST:PORT of the running server that a `worker` adds itself to"""
    resume: Path | None = None
    """directory of a run to go on with from its newest checkpoint, with its settings"""
    token_file: Path | None = None
    """file with the token that whoever joins must have; by default PSYS_TOKEN of the environment"""


def read_settings(argv: Sequence[str], prog: str, default_file: Path) -> LaunchConfig:
    """Settings from flags over a file: that of --config, of the run to --resume, or `default_file`. See `parse`."""
    parser = Parser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", type=Path)
    resume = parser.parse_known_args(argv)[0].resume
    return parse(LaunchConfig, argv, prog, RunDirectory(resume).config_file if resume else default_file)


def launch(config: LaunchConfig) -> None:
    """Train as torchrun's variables and `role` say. Raises PsysError for what the user must mend."""
    if (config.role == "worker") != (config.join is not None):
        raise PsysError("--role worker and --join HOST:PORT go together")
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if config.join is not None:
        host, port = config.join.replace("[", "").replace("]", "").rsplit(":", 1)  # IPv6 comes in brackets
        if int(port) > 65535:
            raise PsysError(f"--join {config.join}: a port is at most 65535")
        store = config.store if "store" in config.model_fields_set else None
        leave_at_sigterm()
        work(host, int(port), _threads(config, processes_here), _given_token(config), store)
    elif int(os.environ.get("WORLD_SIZE", 1)) > 1:
        _train_as_rank(config, processes_here)
    else:
        _train_here(config)


def _train_here(config: LaunchConfig) -> None:
    token, loopback = _given_token(config), _is_loopback(config.listen)
    listener = listen(config.listen, config.port)
    workers = config.workers or min(torch.cuda.device_count() or available_cores(), _MOST_WORKERS)
    run = _start_run(config, workers)
    _say("workers join it with --role worker --join {}:{}".format(*listener.getsockname()[:2]))
    prepare_children()
    token = token or ("" if loopback else _new_token(run))
    complete = Supervisor(run, listener, config.servers, workers, _threads(config, workers), token).wait()
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
    token = _given_token(config)
    if not token and not _is_loopback(config.listen):
        raise PsysError("a server that others can reach wants a token: set PSYS_TOKEN, or --token-file, for every rank")
    board = dist.TCPStore(master, int(os.environ["MASTER_PORT"]), is_master=False, timeout=_PREPARING)
    if rank > 0:
        host, port = board.get("psys/server").decode().rsplit(":", 1)
        with _signals_taken():  # it is server 0 that ends a run, once what is being computed has arrived
            if rank < config.servers:
                serve_shard(rank, host, int(port), token)
            else:
                servers_here = max(0, config.servers - (rank - int(os.environ["LOCAL_RANK"])))
                work(host, int(port), _threads(config, processes_here - servers_here), token)
        return
    if world > processes_here and _is_loopback(config.listen) and not _is_loopback(master):
        raise PsysError("other hosts cannot reach a server on loopback: name this host's address with --listen")
    listener = listen(config.listen, config.port)
    host, port = listener.getsockname()[:2]
    run = _start_run(config, workers)
    board.set("psys/server", f"{master if host in ('0.0.0.0', '::') else host}:{port}")
    with _signals_taken() as asked:
        proof = serve(run, listener, workers, lambda status: bool(asked), token)
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
    from psys.run.results import finish

    finish(run, Console())


def _start_run(config: LaunchConfig, workers: int) -> RunDirectory:
    model = build(config.model, num_classes=2)  # an unknown name must not be found out after minutes of preparing
    if not config.store.exists():
        _prepare(config)
    # A damaged store, a holdout of everything, a model for other images are found out here, and not by every process.
    store = PreparedStore.open(config.store, config.image_size)
    check_source(config, store)
    holdout(store.split("train").labels, config.validation_share, config.seed)
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, *store.image_size))
    fields = {name: getattr(config, name) for name in RunConfig.model_fields}
    settings = RunConfig(**{**fields, "workers": workers})
    if config.resume:
        return _resumed(RunDirectory(config.resume), settings)
    run = RunDirectory.create(settings)
    _say(f"{config.mode} training of {config.model} with {workers} workers; everything goes to {run.path}")
    return run


def check_source(config: LaunchConfig, store: PreparedStore) -> None:
    """Raises PsysError if the store was found by the name of `source` and is of another source of that name.

    A source that is not any more where the store was prepared from may be this one, moved.
    """
    if "store" in config.model_fields_set or config.source is None:
        return
    place = store.manifest.get(PREPARED_FROM)  # not in a store that is older than the question
    if place not in (None, source_location(config.source)) and (place in (SAMPLE, CIFAR10) or os.path.exists(place)):
        raise PsysError(
            f"{config.store} was prepared from {place}, not from {config.source}: "
            f"say --store {config.store} if it is to be this one, or give another --store to be prepared"
        )


def _resumed(run: RunDirectory, settings: RunConfig) -> RunDirectory:
    """The run that is to go on, with what its settings may differ in. Raises PsysError if it cannot go on as it is."""
    before = run.config()
    EventLog(run.events).close()  # raises if the run is going on
    if (run.path / "result.json").exists():
        raise PsysError(f"{run.path} is complete and evaluated: there is nothing to resume")
    changed = [n for n in RunConfig.model_fields if getattr(before, n) != getattr(settings, n) and n not in _RESUMABLE]
    if changed:
        raise PsysError(f"cannot resume {run.path} with another {', '.join(changed)}: start a new run for that")
    newest, refused = run.checkpoints(settings.keep_checkpoints).newest()
    if refused:
        offer = (
            f"remove it to resume from {newest.path}, which is sound" if newest else "there is no sound one before it"
        )
        raise PsysError(f"{refused[0]}; {offer}")
    run.update(settings)
    version = newest.books.version if newest else 0
    _say(f"going on with {run.path} from version {version}")
    return run


def _given_token(config: LaunchConfig) -> str:
    """What whoever joins must have, from file or environment; "" if none was given."""
    if config.token_file is None:
        return os.environ.get("PSYS_TOKEN", "")
    try:
        token = config.token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PsysError(f"cannot read the token in {config.token_file}: {error}") from None
    if not token:
        raise PsysError(f"{config.token_file} is empty: it should hold the run's token")
    return token


def _new_token(run: RunDirectory) -> str:
    token = secrets.token_urlsafe(24)
    run.write_token(token)
    _say(f"workers elsewhere need the token in {run.token}: --token-file, or PSYS_TOKEN")
    return token


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
    command = [sys.executable, "-m", "psys.cli", "prepare", f"--source={config.source}"]
    command += [f"--stores={config.store.parent}", f"--name={config.store.name}"]
    if config.image_size:
        command += [f"--image-size={config.image_size}"]
    if code := run_program(command):
        sys.exit(code)


def run_program(command: list[str]) -> int:
    """The exit code of a program that ends with this process; a signal to end lets it end by itself first."""
    with _signals_taken() as asked:
        # In a session of its own: a terminal's Ctrl-C is for this process, which passes it on.
        program = subprocess.Popen(command, start_new_session=True, preexec_fn=partial(end_with_parent, os.getpid()))
        while program.poll() is None and not asked:
            time.sleep(_POLL_SECONDS)
        if asked:
            program.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(_SETTLE_SECONDS)
            program.kill()
            program.wait()
            return 130
    return program.returncode if program.returncode >= 0 else 128 - program.returncode


def _say(text: str) -> None:
    print(f"psys: {text}", file=sys.stderr, flush=True)

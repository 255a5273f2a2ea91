"""A training whose server 0 runs on this machine, and so do the others, if not on the nodes of a Ray cluster."""

import secrets
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import torch
from torch import nn

from psys.cluster.supervisor import Supervisor
from psys.cores import available_cores
from psys.errors import PsysError, say
from psys.models.registry import name_of
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory
from psys.training.attempt import Attempt
from psys.training.settings import AUTO, TrainingConfig, is_loopback, over_run
from psys.training.signals import stop_signals_recorded
from psys.training.start import end_run, started_run
from psys.transport.address import listen

if TYPE_CHECKING:
    from psys.training.on_ray import Nodes

_MOST_WORKERS = 8  # by default: more workers cost accuracy in async, so a person has to ask for them


def train(
    config: RunConfig, attempt: Attempt | None = None, *, model: Callable[..., nn.Module] | None = None
) -> RunDirectory:
    """Train, after preparing the store if it is missing, and evaluate the run: on this machine, or on a Ray cluster.

    `model`: a function or class that makes the network, called as `build` of psys.models.registry says; instead of
    config.model. It must be importable, for workers are processes of their own.

    SIGINT, SIGTERM or SIGHUP stop a training that was called in the main thread: what is being computed is applied and
    saved, and the run returned is not `complete`. TrainingConfig(resume=..., ...) or `psys evaluate` continue there.

    Raises PsysError for what the user must mend, a training that diverged included, and PreparationError if the store
    could not be prepared. `attempt`: of torchrun, if it started this process (see started_run).
    """
    if not isinstance(config, TrainingConfig):
        config = TrainingConfig(**{name: getattr(config, name) for name in config.model_fields_set})
    if model is not None:
        config = config.model_copy(update={"model": name_of(model)})
    if config.role != "all":
        raise PsysError(f"train() runs a whole training on this machine: use launch() for role '{config.role}'")
    if config.resume not in (None, AUTO):
        config = over_run(config)
    token = config.token() or ("" if is_loopback(config.listen) and config.ray_address is None else None)
    with ExitStack() as reservation:
        nodes = None
        if config.ray_address:
            # Imported here: a training without a Ray cluster needs no Ray.
            from psys.training.on_ray import reserved_nodes

            nodes = reservation.enter_context(reserved_nodes(config))
        workers = config.workers or min(torch.cuda.device_count() or available_cores(), _MOST_WORKERS)
        with started_run(config, workers, attempt) as (run, trains):
            trained = not trains or _supervise(run, config, workers, token, attempt, nodes)
            reservation.close()  # the evaluation needs this machine only
            end_run(run, trained)
    return run


def _supervise(
    run: RunDirectory,
    config: TrainingConfig,
    workers: int,
    token: str | None,
    attempt: Attempt | None,
    nodes: "Nodes | None",
) -> bool:
    """Train with server 0 on this machine, the others here or on `nodes`. Returns whether every batch was applied.

    `token` None: the run makes one.
    """
    address = nodes.listen if nodes else config.listen
    with closing(listen(address, config.port)) as listener, stop_signals_recorded() as received:
        host, port = listener.getsockname()[:2]
        say(f"workers join it with --role worker --join {host}:{port}")
        if config.remote_workers:
            say(
                f"{config.remote_workers} of {workers} workers are started elsewhere, each with --role worker --join "
                f"{host}:{port}"
            )
        if config.remote_servers:
            say(
                f"{config.remote_servers} of {config.servers} servers join it within {config.join_timeout:g} s, each "
                f"with --role server --join {host}:{port}"
            )
        token = _new_token(run) if token is None else token
        elsewhere = nodes.starter(run.config().store, port, token) if nodes else None
        threads = config.threads_of_worker(max(1, workers - config.remote_workers))
        supervisor = Supervisor(run, listener, threads, token, elsewhere)
        return supervisor.supervise(stopped=lambda: bool(received or (attempt and attempt.torchrun_ended)))


def _new_token(run: RunDirectory) -> str:
    token = secrets.token_urlsafe(24)
    run.write_token(token)
    say(f"workers on other machines need the token in {run.token}: --token-file, or PSYS_TOKEN")
    return token

"""A training whose servers and workers run on this machine."""

import secrets
from contextlib import closing

import torch
from rich.console import Console

from psys.cluster.supervisor import Supervisor
from psys.cores import available_cores
from psys.errors import PsysError, say
from psys.models.registry import build
from psys.run.assembly import loss_weights
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory
from psys.training.resume import resume
from psys.training.settings import TrainingConfig, is_loopback
from psys.training.signals import stop_signals_recorded
from psys.training.store import open_store
from psys.transport.address import listen

_MOST_WORKERS = 8  # by default: more workers cost accuracy in async, so a person has to ask for them


def train(config: RunConfig) -> RunDirectory:
    """Train on this machine, after preparing the store if it is missing, and evaluate the run.

    SIGINT or SIGTERM stop a training that was called in the main thread: what is being computed is applied and saved,
    and the run returned is not `complete`. TrainingConfig(resume=..., ...) or `psys evaluate` continue there.

    Raises PsysError for what the user must mend, a training that diverged included, and PreparationError if the store
    could not be prepared.
    """
    if not isinstance(config, TrainingConfig):
        config = TrainingConfig(**{name: getattr(config, name) for name in config.model_fields_set})
    if config.role != "all":
        raise PsysError(f"train() runs a whole training on this machine: use launch() for role '{config.role}'")
    token, loopback = config.token(), is_loopback(config.listen)
    workers = config.workers or min(torch.cuda.device_count() or available_cores(), _MOST_WORKERS)
    with closing(listen(config.listen, config.port)) as listener:
        run = start_run(config, workers)
        address = "{}:{}".format(*listener.getsockname()[:2])
        say(f"workers join it with --role worker --join {address}")
        if config.remote_servers:
            say(
                f"{config.remote_servers} of {config.servers} servers join it within {config.join_timeout:g} s, each "
                f"with --role server --join {address}"
            )
        token = token or ("" if loopback else _new_token(run))
        with stop_signals_recorded() as received:
            supervisor = Supervisor(run, listener, config.threads_of_worker(workers), token)
            complete = supervisor.supervise(stopped=lambda: bool(received))
    end_run(run, complete)
    return run


def start_run(config: TrainingConfig, workers: int) -> RunDirectory:
    """The directory of a new run, or of the one to resume, once its store, model and settings are known to fit.

    Raises PsysError if they do not: before any process is started, and for an unknown model before the store is
    prepared, which may take minutes.
    """
    model = build(config.model, num_classes=2)
    store = open_store(config)
    loss_weights(config, store)  # holds validation images out as well
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, *store.image_size))
    settings = config.run_config(workers)
    if config.resume:
        run = RunDirectory(config.resume)
        resume(run, settings)
        return run
    run = RunDirectory.create(settings)
    say(f"{config.mode} training of {config.model} with {workers} workers; everything goes to {run.path}")
    return run


def end_run(run: RunDirectory, complete: bool) -> None:
    """Evaluate a run whose batches are all applied, or say what was saved of one that was stopped."""
    if complete:
        # Imported here: matplotlib takes half a second to import, for which training need not wait.
        from psys.run.results import evaluate_run

        evaluate_run(run, Console())
    elif any(run.snapshots.iterdir()):
        say(f"stopped and saved: `psys evaluate {run.path}` evaluates it, --resume {run.path} continues it")
    else:
        say("stopped, nothing was trained")


def _new_token(run: RunDirectory) -> str:
    token = secrets.token_urlsafe(24)
    run.write_token(token)
    say(f"workers on other machines need the token in {run.token}: --token-file, or PSYS_TOKEN")
    return token

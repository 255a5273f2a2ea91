"""The start and the end of a run, around the training: its directory, lock, settings and evaluation."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from psys.data.store import PreparedStore
from psys.errors import PsysError, say
from psys.run.assembly import layout_of, loss_weights
from psys.run.config import RunConfig
from psys.run.defaults import rate_in_words
from psys.run.directory import RunDirectory
from psys.run.divergence import advice, divergence
from psys.run.events import EventLog, read_events, surviving
from psys.run.faults import read_plan
from psys.run.network import ImageFormat, build_network, checked_network, format_of
from psys.training.attempt import Attempt
from psys.training.resume import resume
from psys.training.settings import AUTO, TrainingConfig
from psys.training.store import open_store

_AGAIN_SECONDS = 180.0  # how long a command given again waits for the processes of its last start to save and end


class StartedRun(NamedTuple):
    """A run that this process alone may train."""

    directory: RunDirectory
    trains: bool  # False: there is nothing left to train


@contextlib.contextmanager
def started_run(config: TrainingConfig, workers: int, attempt: Attempt | None = None) -> Iterator[StartedRun]:
    """A new run, or the one to resume, once its store, model and settings fit; its lock is held within the block.

    A later `attempt` of torchrun continues the run that an earlier one began. Raises PsysError before any process is
    started, and for an unknown model before the store is prepared, which may take minutes. A start that fails before
    the first event of a new run leaves no directory.
    """
    size = config.image_size or ImageFormat().size[0]
    build_network(config, 2, ImageFormat((size, size)))
    read_plan(config.faults)
    settings = config.run_config(workers)
    again = attempt.earlier_run() if attempt else None
    automatic = again is not None or config.resume == AUTO
    wait = _AGAIN_SECONDS if automatic else 0.0
    run = _directory(config, again)
    with run.locked(wait):
        resumed = config.resume not in (None, AUTO)
        try:
            EventLog(run.events, wait).close()  # a server of the start before may be about to save
            resumed = resumed or (automatic and run.begun)
            if not resumed:
                run.begin(settings)
            if attempt:
                attempt.record_run(run.path)
            store = open_store(config)
            notes = _check(settings, store)
            if resumed:
                trains = resume(run, settings, store, wait)
            else:
                trains = True
                say(f"{config.mode} training of {config.model} with {workers} workers; everything goes to {run.path}")
            for note in notes:
                say(f"{config.model}: {note}")
            if trains:
                say(f"learning rate: {rate_in_words(settings)}")
            with _advice_added(run):
                yield StartedRun(run, trains)
        finally:
            if not resumed and not run.begun:
                run.remove()


def end_run(run: RunDirectory, complete: bool) -> None:
    """Evaluate a run that has nothing left to train, or say what was saved of one that was stopped."""
    if run.complete:
        say(f"{run.path} is complete and evaluated; more --epochs extend it")
    elif complete:
        # Imported here: matplotlib takes half a second to import, for which training need not wait.
        from psys.run.results import evaluate_run

        evaluate_run(run, Console())
    elif any(run.snapshots.iterdir()):
        say(f"stopped and saved: `psys evaluate {run.path}` evaluates it, --resume {run.path} continues it")
    else:
        say("stopped, nothing was trained")


def _check(config: RunConfig, store: PreparedStore) -> tuple[str, ...]:
    """What the user is to know of the model. Raises PsysError if the settings do not fit the model or the store."""
    loss_weights(config, store)  # holds validation images out as well
    model, notes = checked_network(config, len(store.classes), format_of(store))
    try:
        layout_of(config, model)
    except ValueError as error:
        raise PsysError(str(error)) from None
    return notes


@contextlib.contextmanager
def _advice_added(run: RunDirectory) -> Iterator[None]:
    """Add to the error of a training that diverged how it can be continued."""
    try:
        yield
    except PsysError as error:
        if divergence(surviving(read_events(run.events))):
            raise PsysError(f"{error}; {advice(run)}") from None
        raise


def _directory(config: TrainingConfig, again: Path | None) -> RunDirectory:
    if again:
        return RunDirectory(again)
    if config.resume is None:
        return RunDirectory.reserve(config)
    if config.resume != AUTO:
        return RunDirectory(config.resume)
    job = os.environ.get("SLURM_JOB_ID")
    name = config.name or (f"slurm-{job}" if job else None)
    if name is None:
        raise PsysError("--resume auto needs --name, by which the same command finds its run again")
    return RunDirectory.reserve(config.model_copy(update={"name": name}))

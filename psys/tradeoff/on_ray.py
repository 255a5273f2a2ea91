"""Trials as tasks of a Ray cluster whose nodes share no disk; the only module of a study that imports ray."""

import io
import shutil
import socket
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from psys.config import validate
from psys.data.store import PreparedStore
from psys.data.store_copy import find_store, packed_store, unpacked_store
from psys.errors import PsysError, reason_of
from psys.run.config import RunConfig
from psys.segment.actors import checked_interrupts, ray_session
from psys.tradeoff.config import StudyConfig
from psys.tradeoff.plan import Trial
from psys.tradeoff.trial import Finished, run_trial, stop_signals_interrupt, write_settings

_WAIT_SECONDS = 1.0
_PARTS = ("trials/{}", "logs/{}.log")


def run_trials(config: StudyConfig, trials: Sequence[Trial], folder: Path) -> Iterator[tuple[Trial, Finished]]:
    """Run `trials` on the cluster at `ray_address`, and yield each with how it went, in the order of their ends.

    A trial whose node was lost is repeated on another one. What a trial leaves comes back to `folder`. Raises PsysError
    if the cluster does not answer or has too few cores.
    """
    runs = {trial.name: validate(RunConfig, trial.settings, f"trial '{trial.name}'") for trial in trials}
    cores = {name: config.cores_per_trial or (run.workers or 1) * (run.threads or 1) for name, run in runs.items()}
    with (
        ray_session(max(cores.values()), config.ray_address),
        stop_signals_interrupt(),  # once more: Ray has taken the signals over
        checked_interrupts() as raise_if_interrupted,
    ):
        import ray

        sent = {store: ray.put(packed_store(store)) for store in {run.store for run in runs.values()}}
        tasks = {}
        for trial in trials:
            run, store = runs[trial.name], runs[trial.name].store
            threads = {"threads": run.threads or max(1, cores[trial.name] // (run.workers or 1))}
            task = ray.remote(num_cpus=cores[trial.name], num_gpus=config.gpus_per_trial)(run_on_node)
            on_node = replace(trial, settings=trial.settings | threads)
            content = PreparedStore.open(store).content_hash
            tasks[task.remote(on_node, store.absolute(), content, sent[store], config.trial_timeout)] = trial
        while tasks:
            raise_if_interrupted()
            for reference in ray.wait([*tasks], timeout=_WAIT_SECONDS)[0]:
                trial = tasks.pop(reference)
                write_settings(trial, folder)  # without what depends on the node
                try:
                    finished, left = ray.get(reference)
                except ray.exceptions.RayError as error:
                    now = time.time()
                    yield trial, Finished(reason_of(error)[:400], now, now, 0.0, "unknown")
                else:
                    _take(left, trial.name, folder)
                    yield trial, finished


def run_on_node(
    trial: Trial, store: Path, content: str, packed: bytes, timeout: float | None
) -> tuple[Finished, bytes]:
    """Run a trial on this node: how it went, and what it left as a tar archive.

    store: where the driver has its prepared store, used if it is there on this node with the same `content` hash;
    packed: the store as a tar archive, b"" if it is too large to be sent.
    """
    with tempfile.TemporaryDirectory(prefix="psys-trial-") as temporary:
        folder = Path(temporary)
        try:
            here = find_store(store, content) or unpacked_store(store, content, packed)
        except PsysError as error:
            now = time.time()
            return Finished(str(error), now, now, 0.0, socket.gethostname()), b""
        settings = trial.settings | {"store": str(here)}
        # A node may run several trials at once, of which none waits for another.
        finished = run_trial(replace(trial, settings=settings), folder, 0.0, timeout)
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for part in _PARTS:
                if (path := folder / part.format(trial.name)).exists():
                    tar.add(path, part.format(trial.name))
        return finished, archive.getvalue()


def _take(left: bytes, name: str, folder: Path) -> None:
    """Move what a trial left on its node to the study's directory; no other file than those of the trial."""
    if not left:
        return
    with tempfile.TemporaryDirectory(prefix=".node-", dir=folder) as unpacked:
        with tarfile.open(fileobj=io.BytesIO(left)) as tar:
            tar.extractall(unpacked, filter="data")
        for part in _PARTS:
            source, target = Path(unpacked) / part.format(name), folder / part.format(name)
            if source.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)
                source.replace(target)

"""Continuing a run from its newest checkpoint: what may change there, and what is recorded of the change."""

from collections.abc import Mapping, Sequence
from typing import Any

from psys.data.store import PreparedStore
from psys.errors import PsysError, say
from psys.ps.events import RunEnded, RunEvent, RunStarted, SettingsChanged, StoppedEarly, UpdateApplied
from psys.ps.ledger import Ledger
from psys.ps.schedule import learning_rate
from psys.ps.store import refitted
from psys.run.assembly import initial_ledger
from psys.run.checkpoint import Checkpoint
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory
from psys.run.divergence import advice, divergence, last_sound_version
from psys.run.events import EventLog, read_events, surviving
from psys.run.segments import in_words

# The settings that do not say what is computed: their changes are no segments of the run.
_HOW_IT_RUNS = {
    *("name", "runs", "store", "source", "servers", "remote_servers", "remote_workers", "threads", "faults"),
    *("listen", "port"),
    *("heartbeat_timeout", "patience", "start_timeout", "join_timeout", "leave_timeout", "restarts"),
    *("checkpoint_every", "keep_checkpoints", "snapshot_epochs", "evaluate_every", "export"),
    *("earlier_batch_sizes", "followed"),
}
_FIXED = {
    "model": "the checkpoint holds parameters of the other",
    "model_hash": "the checkpoint holds parameters of the other file",
    "batchnorm": "the checkpoint holds parameters of the other",
    "weights": "the checkpoint holds what they have become",
    "seed": "it decides which images are held out, and the order of the batches of the epoch that has begun",
    "validation_share": "images that were trained on would be held out, or the other way round",
    "local_steps": "a lease would be of other batches",
    "image_size": "the snapshots were evaluated on images of the other size",
}
"""Settings that no resumed run changes, and why"""


def resume(run: RunDirectory, settings: RunConfig, store: PreparedStore, wait: float) -> bool:
    """Make `settings` those of the run, which continues with them from its newest checkpoint.

    A change of what is computed is an event, and the settings and the result until then are kept (see
    RunDirectory.archive_settings). Returns whether there is anything left to train.

    `wait`: seconds that processes of an earlier start have to save and end; above 0 a complete run is no error. Raises
    PsysError, having changed nothing, if the run is going on, complete or diverged and nothing changes that; if a
    setting cannot change; or if the newest checkpoint is damaged.
    """
    before = run.config()
    with EventLog(run.events, wait) as log:
        events = surviving(read_events(run.events))
        changed = _changed(before, settings)
        begin = next((event for event in events if isinstance(event, RunStarted)), None)
        if begin and begin.store != store.content_hash:
            raise PsysError(f"{store.path} is not the store that {run.path} was trained on: name that one with --store")
        chosen = changed.keys() - {"workers", *settings.followed}  # it may be the number of another machine's cores
        if divergence(events) and not chosen:
            raise PsysError(f"training of {run.path} diverged; {advice(run)}")
        sound = last_sound_version(events) if chosen else None
        checkpoint = _checkpoint(run, before, sound)
        version = checkpoint.metadata.version if checkpoint else 0
        begun = _epochs_begun(initial_ledger(before, store), checkpoint)
        _check(run, before, settings, changed, begun)
        if checkpoint:
            _check_optimizer(run, checkpoint, settings)
        earlier = _earlier_batch_sizes(before, settings.batch_size, begun)
        settings = settings.model_copy(update={"earlier_batch_sizes": earlier})
        ledger = initial_ledger(settings, store)
        if checkpoint:
            ledger.restore(checkpoint.metadata.ledger)
        over = _is_over(events) and (run.complete or version == _last_version(events))
        if over and not chosen:
            if run.complete and not wait:
                raise PsysError(f"{run.path} is complete and evaluated: nothing is left to train; --epochs extends it")
            return False
        if run.complete and checkpoint is None and sound is None:
            raise PsysError(f"the checkpoints of {run.path} are gone: nothing can continue it, start a new run")
        if over and ledger.finished:
            raise PsysError(
                f"all {settings.epochs} epochs of {run.path} are trained, {', '.join(in_words(changed))} would change "
                "nothing: --epochs extends the run, another --name starts a new one"
            )
        if sound is not None:
            run.checkpoints(before.keep_checkpoints).roll_back(version)
            run.roll_back(version)
        if changed and events:
            log.write(SettingsChanged(version=version, changed=changed))
            run.archive_settings(version)
        if run.complete:
            run.archive_result()
        run.update(settings)
    say(f"{run.path} continues from version {version} (epoch {ledger.epochs_done:.4g})")
    if changed:
        rate = learning_rate(settings.schedule, ledger.epochs_done, settings.epochs, settings.gradients_of_update)
        say(f"changed from here on: {', '.join(in_words(changed))}; the learning rate is {rate:.4g} here")
    return True


def _changed(before: RunConfig, settings: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the settings that change what is computed: value before, value from now on."""
    old, new = _leaves(before.model_dump(mode="json")), _leaves(settings.model_dump(mode="json"))
    return {
        name: (old.get(name), new.get(name))
        for name in new
        if name.partition(".")[0] not in _HOW_IT_RUNS and old.get(name) != new.get(name)
    }


def _leaves(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in settings.items():
        leaves |= _leaves(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return leaves


def _checkpoint(run: RunDirectory, before: RunConfig, sound: int | None) -> Checkpoint | None:
    """The newest checkpoint, or the newest one up to version `sound`. Raises PsysError if a newer one is damaged."""
    newest, refused = run.checkpoints(before.keep_checkpoints).newest(sound)
    if refused:
        advice = f"remove it to resume from {newest.path}" if newest else "there is no undamaged one before it"
        raise PsysError(f"{refused[0]}; {advice}")
    return newest


def _epochs_begun(ledger: Ledger, checkpoint: Checkpoint | None) -> int:
    """Epochs of which a batch was leased."""
    fresh = checkpoint.metadata.ledger.fresh if checkpoint else 0
    return ledger.plan.place(fresh - 1)[0] + 1 if fresh else 0


def _earlier_batch_sizes(before: RunConfig, batch_size: int, begun: int) -> tuple[tuple[int, int], ...]:
    """The setting of a run that goes on with `batch_size`: the epochs that have begun keep their batches."""
    if not begun:
        return ()
    rows = [(size, epoch) for size, epoch in before.earlier_batch_sizes if epoch < begun]
    last = next((size for size, epoch in before.earlier_batch_sizes if epoch >= begun), before.batch_size)
    return (*rows, (last, begun)) if last != batch_size else tuple(rows)


def _check(
    run: RunDirectory, before: RunConfig, settings: RunConfig, changed: Mapping[str, tuple[Any, Any]], begun: int
) -> None:
    """Raises PsysError for a change that a run of which `begun` epochs have begun cannot make."""
    for name, reason in _FIXED.items():
        if name in changed:
            old, new = changed[name]
            raise PsysError(f"cannot resume {run.path} with {name} {new} instead of {old}: {reason}; start a new run")
    if settings.epochs < begun:
        raise PsysError(f"cannot resume {run.path} with --epochs {settings.epochs}: epoch {begun} has begun")


def _check_optimizer(run: RunDirectory, checkpoint: Checkpoint, settings: RunConfig) -> None:
    needed = settings.state_names()
    if set(needed) != set(refitted(checkpoint.state, needed).optimizer):
        raise PsysError(
            f"cannot resume {run.path} with this optimizer: it needs {_names(needed)}, the checkpoint holds "
            f"{_names(list(checkpoint.state.optimizer))}; start a new run"
        )


def _names(vectors: Sequence[str]) -> str:
    return " and ".join(vectors) or "nothing"


def _last_version(events: Sequence[RunEvent]) -> int:
    """Version of the last update; on a full disk it may not have been saved."""
    return max((event.version for event in events if isinstance(event, UpdateApplied)), default=0)


def _is_over(events: Sequence[RunEvent]) -> bool:
    """Whether the run has ended with nothing left to train: all batches are applied, or it was stopped early."""
    last = next((event for event in reversed(events) if isinstance(event, RunStarted | RunEnded)), None)
    stopped_early = any(isinstance(event, StoppedEarly) for event in events)
    return isinstance(last, RunEnded) and (last.unfinished == 0 or stopped_early)

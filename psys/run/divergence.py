"""A training that diverged: which versions of the parameters are sound, and how the run can be continued from them."""

import json
import math
import shlex
from collections.abc import Iterable

from psys.ps.events import RunDiverged, RunEvent, SettingsChanged, SnapshotEvaluated, UpdateApplied
from psys.run.checkpoint import Checkpoint
from psys.run.directory import RunDirectory
from psys.run.events import read_events, surviving

_HIGH = 3.0  # a loss above this many times that of the first update, or above this, is no noise of a batch
_LAST = 10  # updates that all have a high loss: the training has diverged, though every gradient is finite
_APART = 100  # updates: a high loss that long before the next one has another cause


def divergence(events: Iterable[RunEvent]) -> RunDiverged | None:
    """The event that ended the run because its training diverged, unless its settings were changed since.

    `events` are the surviving ones.
    """
    found = None
    for event in events:
        if isinstance(event, RunDiverged):
            found = event
        elif isinstance(event, SettingsChanged):
            found = None
    return found


def last_sound_version(events: Iterable[RunEvent]) -> int | None:
    """The newest sound version of a training that diverged; None if the training did not diverge.

    It diverged if a gradient, a loss of the last updates or the loss of an evaluation is not finite, or if all of the
    last ten losses are high. A version is sound if it is earlier than all versions at which this happened, and an
    update of usual loss has a gradient computed at it; version 0 always is. `events` are the surviving ones.
    """
    events = list(events)
    updates = [event for event in events if isinstance(event, UpdateApplied)]
    high = _high_at_the_end(updates)
    unsound = [
        event.version
        for event in events
        if isinstance(event, RunDiverged) or (isinstance(event, SnapshotEvaluated) and not math.isfinite(event.loss))
    ]
    exploded = len(high) >= _LAST and high[-_LAST:] == updates[-_LAST:]
    if not (unsound or exploded or any(not math.isfinite(update.loss) for update in high)):
        return None
    first = min([*unsound, *(_read(update)[0] for update in high)])
    excluded = {update.version for update in high}
    read = [_read(update)[1] for update in updates if update.version not in excluded]
    return max((version for version in read if version < first), default=0)


def sound_checkpoint(run: RunDirectory, events: Iterable[RunEvent]) -> Checkpoint | None:
    """The newest undamaged checkpoint of a sound version (see last_sound_version); None if there is none."""
    checkpoint, _ = run.checkpoints(run.config().keep_checkpoints).newest(last_sound_version(events))
    return checkpoint


def advice(run: RunDirectory) -> str:
    """How to continue a run whose training diverged, in one line: from where, and with half the learning rate."""
    schedule = run.config().schedule
    command = f"--resume {shlex.quote(str(run.path))} --schedule.learning-rate {schedule.learning_rate / 2:g}"
    if schedule.table:
        command += f" --schedule.table '{json.dumps([(epoch, rate / 2) for epoch, rate in schedule.table])}'"
    command = f"`{command}`"
    events = surviving(read_events(run.events))
    checkpoint = sound_checkpoint(run, events)
    if checkpoint is None:
        return f"there is no sound checkpoint: {command} starts it over"
    version = checkpoint.metadata.version
    return (
        f"the last sound checkpoint is that of version {version} (epoch {epochs_at(version, events):.4g}): "
        f"{command} continues from it with half the rate"
    )


def epochs_at(version: int, events: Iterable[RunEvent]) -> float:
    """Epochs that a version was trained for; `events` are the surviving ones."""
    return next((e.epochs for e in events if isinstance(e, UpdateApplied) and e.version == version), 0.0)


def _high_at_the_end(updates: list[UpdateApplied]) -> list[UpdateApplied]:
    """The updates, in order, whose loss is high or not finite, back from the last update to a long time without any."""
    found: list[UpdateApplied] = []
    if updates:
        usual = max(1.0, updates[0].loss) if math.isfinite(updates[0].loss) else 1.0
        next_version = updates[-1].version
        for update in reversed(updates):
            if next_version - update.version >= _APART:
                break
            if not update.loss <= _HIGH * usual:  # written this way, NaN is high as well
                found.append(update)
                next_version = update.version
    return found[::-1]


def _read(update: UpdateApplied) -> tuple[int, int]:
    """The lowest and the highest version at which the gradients of an update were computed."""
    before = update.version - 1
    return before - max(update.staleness), before - min(update.staleness)

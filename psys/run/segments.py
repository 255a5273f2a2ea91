"""The segments of a run that was resumed with other settings: from where on, and what changed."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from psys.ps.events import RunEvent, SettingsChanged, UpdateApplied


class Segment(NamedTuple):
    """A part of a run that begins with other settings."""

    version: int  # they apply after it
    epoch: float  # of that version
    changed: dict[str, tuple[Any, Any]]  # by dotted name of the setting: value before and after


def segments(events: Iterable[RunEvent]) -> list[Segment]:
    """The segments after the first, in order; `events` are the surviving ones.

    Settings that were changed several times at one version make one segment, without those that are as before.
    """
    epochs, changes = {0: 0.0}, dict[int, dict[str, tuple[Any, Any]]]()
    for event in events:
        if isinstance(event, UpdateApplied):
            epochs[event.version] = event.epochs
        elif isinstance(event, SettingsChanged):
            at_version = changes.setdefault(event.version, {})
            for name, (before, after) in event.changed.items():
                at_version[name] = (at_version.get(name, (before,))[0], after)
    found = [
        Segment(version, epochs.get(version, 0.0), {name: (a, b) for name, (a, b) in changed.items() if a != b})
        for version, changed in sorted(changes.items())
    ]
    return [segment for segment in found if segment.changed]


def in_words(changed: dict[str, tuple[Any, Any]]) -> list[str]:
    """Changed settings as `schedule.learning_rate 0.1 → 0.05`, one each."""
    return [f"{name} {_value(before)} → {_value(after)}" for name, (before, after) in changed.items()]


def _value(value: object) -> str:
    match value:
        case None:
            return "none"
        case str():
            return value
        case float():
            return f"{value:g}"
    return json.dumps(value)

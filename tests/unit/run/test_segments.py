from typing import Any

import pytest

from psys.ps.events import RunEvent, SettingsChanged
from psys.run.events import surviving
from psys.run.segments import Segment, in_words, segments
from tests.support.runs import start, update


def changed(version: int, **settings: tuple[Any, Any]) -> SettingsChanged:
    return SettingsChanged(version=version, changed=settings)


def resume(version: int) -> RunEvent:
    return start("0a1b", "resume", version=version)


UPDATES: list[RunEvent] = [start("0a1b"), *(update(version) for version in range(1, 7))]


def test_each_change_of_settings_begins_a_segment() -> None:
    events = [
        *UPDATES[:5],
        changed(4, mode=("sync", "async")),
        resume(4),
        *UPDATES[5:],
        changed(6, epochs=(3, 9)),
        resume(6),
    ]
    assert segments(surviving(events)) == [
        Segment(4, 2.0, {"mode": ("sync", "async")}),
        Segment(6, 3.0, {"epochs": (3, 9)}),
    ]
    assert segments(UPDATES) == []


def test_changes_at_the_start_are_a_segment_of_epoch_0() -> None:
    assert segments([*UPDATES, changed(0, seed=(0, 1)), resume(0)])[0] == Segment(0, 0.0, {"seed": (0, 1)})


def test_changes_at_one_version_make_one_segment() -> None:
    """The second resume is from an earlier version than the first, from which on both changes apply."""
    events = [
        *UPDATES,
        changed(6, mode=("sync", "async"), epochs=(3, 9)),
        resume(6),
        changed(4, epochs=(9, 12)),
        resume(4),
    ]
    assert segments(surviving(events)) == [Segment(4, 2.0, {"mode": ("sync", "async"), "epochs": (3, 12)})]


def test_change_that_was_taken_back_is_no_segment() -> None:
    events = [*UPDATES, changed(6, epochs=(3, 9)), resume(6), changed(4, epochs=(9, 3)), resume(4)]
    assert segments(surviving(events)) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.1, 0.05), "s 0.1 → 0.05"),
        ((1e8, 5e7), "s 1e+08 → 5e+07"),
        ((20, 60), "s 20 → 60"),
        ((None, 1.0), "s none → 1"),
        (("sync", "async"), "s sync → async"),
        ((False, True), "s false → true"),
        (([], [[64, 2]]), "s [] → [[64, 2]]"),
    ],
)
def test_change_in_words(values: tuple[Any, Any], words: str) -> None:
    assert in_words({"s": values}) == [words]

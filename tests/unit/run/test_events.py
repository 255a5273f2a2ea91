from pathlib import Path
from typing import Any

import pytest

from psys.errors import PsysError
from psys.run.events import EventLog, read_events, surviving


def test_events_read_back_in_order_while_the_log_is_open(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write("join", worker="worker0")
    log.write("update", version=1, batches=[0, 1])
    expected = [{"event": "join", "worker": "worker0"}, {"event": "update", "version": 1, "batches": [0, 1]}]
    assert list(read_events(tmp_path / "events.jsonl")) == expected
    with pytest.raises(PsysError, match="still going on"):
        EventLog(tmp_path / "events.jsonl")
    log.close()
    EventLog(tmp_path / "events.jsonl").close()


def test_a_line_cut_short_by_a_crash_is_left_out_but_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "join"}\n{"event": "upd')
    assert list(read_events(path)) == [{"event": "join"}]
    path.write_bytes(b'{"event": "join"}\n{"event": "d\xc3')
    assert list(read_events(path)) == [{"event": "join"}]
    path.write_text('{"event": "join"\n{"event": "update"}\n')
    with pytest.raises(PsysError, match=r"events.jsonl line 1 is no event"):
        list(read_events(path))
    path.write_text('{"event": ' + "[" * 100_000 + "\n")
    with pytest.raises(PsysError, match=r"events.jsonl line 1 is no event"):
        list(read_events(path))


@pytest.mark.parametrize(
    "torn", [b'{"event": "upd', b"{", b'{"event": "update"}', b"\xc3", b"\0" * 4096, b"x" * (1 << 20)]
)
def test_a_torn_last_line_is_removed_when_the_log_is_opened_again(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "join"}\n' + torn)
    with EventLog(path) as log:
        assert path.read_bytes() == b'{"event": "join"}\n'
        log.write("resume", version=0)
    with EventLog(path) as log:  # nothing is torn now
        log.write("end")
    assert [event["event"] for event in read_events(path)] == ["join", "resume", "end"]


@pytest.mark.parametrize("whole", [b"", b'{"event": "join"}\n', b'{"event": "join"}\n{"event": "end"}\n'])
def test_a_whole_log_stays_as_it_is(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(whole)
    EventLog(path).close()
    assert path.read_bytes() == whole


def test_a_log_of_nothing_but_a_torn_line_is_empty_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "sta')
    EventLog(path).close()
    assert path.read_bytes() == b""


def test_a_log_that_is_being_written_is_not_cut(tmp_path: Path) -> None:
    """The line is not torn: the other process is in the middle of it."""
    path = tmp_path / "events.jsonl"
    with EventLog(path):
        path.write_bytes(b'{"event": "upd')
        with pytest.raises(PsysError, match="still going on"):
            EventLog(path)
        assert path.read_bytes() == b'{"event": "upd'


def test_what_survives_is_what_led_to_the_end() -> None:
    def event(kind: str, version: int) -> dict[str, Any]:
        return {"event": kind, "version": version}

    start, join, first, checkpoint = event("start", 0), {"event": "join"}, event("update", 1), event("checkpoint", 1)
    undone = [event("update", 2), event("snapshot", 2), event("update", 3)]
    assert surviving([]) == []
    assert surviving([start, join, first, *undone]) == [start, join, first, *undone]
    resume = event("resume", 1)
    again = [event("update", 2), event("snapshot", 2)]
    kept = [start, join, first, checkpoint, resume, *again]
    assert surviving(iter([start, join, first, checkpoint, *undone, resume, *again])) == kept
    # Set back twice, the second time to before the first.
    anew = event("resume", 0)
    assert surviving([*kept, anew, first]) == [start, join, checkpoint, resume, anew, first]
    # The snapshot of the version it was set back to is that version's still.
    assert surviving([start, first, event("snapshot", 1), resume]) == [start, first, event("snapshot", 1), resume]

from pathlib import Path

import pytest

from psys.errors import PsysError
from psys.events import EventLog, read_events


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
    path.write_text('{"event": "join"\n{"event": "update"}\n')
    with pytest.raises(PsysError, match=r"events.jsonl line 1 is no event"):
        list(read_events(path))

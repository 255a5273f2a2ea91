import json
import math
import resource
from pathlib import Path
from random import Random
from typing import Any

import pytest

from psys.errors import PsysError
from psys.ps.events import (
    CheckpointFailed,
    CheckpointSaved,
    FaultInjected,
    JoinRefused,
    LeasesReturned,
    PushRefused,
    RunDiverged,
    RunEvent,
    SettingsChanged,
    SnapshotFailed,
    SnapshotSaved,
    StoppedEarly,
    UpdateApplied,
    WorkerJoined,
    WorkerLeft,
    WorkerSuspected,
)
from psys.ps.messages import Lease
from psys.run.events import EventLog, read_events, surviving
from tests.support.checkpoints import exit_code_of_child
from tests.support.mutations import damaged, with_changed_node
from tests.support.runs import end, start, update

JOIN = WorkerJoined(worker="worker0", seconds=0.5)
TIME = 1_700_000_000.123
JOIN_LINE = b'{"event": "join", "worker": "worker0", "seconds": 0.5, "time": 1700000000.123}\n'
LEASES = (Lease(3, 0, "worker0", 2, 0), Lease(4, 1, "worker1", 2, 1))
EVERY_KIND: list[RunEvent] = [
    start("0a1b"),
    start("0a1b", "resume", version=2),
    JOIN,
    WorkerSuspected(worker="worker0", seconds=1.0),
    WorkerLeft(worker="worker0", reason="silent", seconds=1.0),
    update(1, batches=(0, 1), attempts=(0, 2), workers=("worker0", "worker1"), gradient_norms=(1.5, math.inf)),
    LeasesReturned(leases=LEASES, seconds=1.0),
    PushRefused(receipt="damaged", lease=LEASES[0], seconds=1.0),
    FaultInjected(worker="worker0", step=5, kind="slow", duration=0.5, seconds=1.0),
    JoinRefused(address="127.0.0.1", reason="wrong token", seconds=1.0),
    SnapshotSaved(version=1, epochs=1.0, seconds=1.0),
    SnapshotFailed(version=1, reason="No space left on device"),
    CheckpointSaved(version=1, seconds=1.0, took=0.25),
    CheckpointFailed(version=1, reason="No space left on device"),
    StoppedEarly(best_version=1, best_accuracy=0.5, patience=2.0, seconds=1.0),
    RunDiverged(version=1, batch=3, seconds=1.0),
    SettingsChanged(
        version=1,
        changed={"mode": ("sync", "async"), "gradient_clip": (None, 1.0), "earlier_batch_sizes": ([], [[64, 2]])},
    ),
    end(),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: TIME + 0.0004)


def write(path: Path, *events: RunEvent) -> None:
    with EventLog(path) as log:
        for event in events:
            log.write(event)


def test_every_kind_of_event_is_read_back_in_order_while_the_log_is_open(path: Path) -> None:
    with EventLog(path) as log:
        for event in EVERY_KIND:
            log.write(event)
        log.sync()
        assert list(read_events(path)) == EVERY_KIND
        with pytest.raises(PsysError, match="still going on"):
            EventLog(path)
    EventLog(path).close()


def test_line_holds_the_fields_by_name_and_leases_as_lists(path: Path) -> None:
    write(path, JOIN, LeasesReturned(leases=LEASES, seconds=1.0), update(1, loss=math.nan))
    join, returned, applied = path.read_text().splitlines()
    assert join.encode() + b"\n" == JOIN_LINE
    assert returned == (
        '{"event": "returned", "leases": [[3, 0, "worker0", 2, 0], [4, 1, "worker1", 2, 1]], "seconds": 1.0, '
        '"time": 1700000000.123}'
    )
    assert '"loss": NaN' in applied
    (read,) = (event for event in read_events(path) if isinstance(event, UpdateApplied))
    assert math.isnan(read.loss)


def test_time_of_writing_is_read_back_and_is_no_part_of_equality(path: Path) -> None:
    write(path, JOIN)
    (read,) = read_events(path)
    assert read == JOIN
    assert (read.time, JOIN.time) == (TIME, None)


def test_start_without_format_is_refused_as_of_another_version(path: Path) -> None:
    path.write_text('{"event": "start", "store": "0a1b", "version": 0}\n')
    with pytest.raises(PsysError, match="written by another version of psys: it has format 1, this version reads"):
        list(read_events(path))


def test_start_of_another_format_is_refused_as_of_another_version(path: Path) -> None:
    write(path, start("0a1b"))
    path.write_text(path.read_text().replace('"format": 4', '"format": 5'))
    with pytest.raises(PsysError, match="written by another version of psys: it has format 5, this version reads"):
        list(read_events(path))


def test_last_line_that_a_crash_cut_short_is_left_out(path: Path) -> None:
    for torn in (b'{"event": "upd', b'{"event": "d\xc3', JOIN_LINE[:-1]):
        path.write_bytes(JOIN_LINE + torn)
        assert list(read_events(path)) == [JOIN]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"event": "join"', "Invalid JSON"),
        (b'{"event": ' + b"[" * 100_000, "Invalid JSON: recursion limit"),
        (b"\xff", "Invalid JSON"),
        (b"", "Invalid JSON"),
        (b"[]", "Input should be an object"),
        (b'{"worker": "worker0", "seconds": 0.5}', "Unable to extract tag using discriminator 'event'"),
        (b'{"event": "join", "worker": "worker0", "seconds": 0.5}', "'time' is missing"),
        (b'{"event": "join", "worker": "worker0", "seconds": 0.5, "time": null}', "'time' is missing"),
        (b'{"event": "join", "worker": "worker0", "seconds": 0.5, "time": "noon"}', r"join\.time: Input should be"),
        (b'{"event": "jion", "worker": "worker0", "seconds": 0.5}', "Input tag 'jion'"),
        (b'{"event": "join", "worker": "worker0"}', r"join\.seconds: Field required"),
        (b'{"event": "join", "worker": "worker0", "seconds": "1"}', r"join\.seconds: Input should be a valid number"),
        (b'{"event": "join", "worker": "worker0", "seconds": 1, "at": 2}', r"join\.at: Unexpected keyword argument"),
        (b'{"event": "checkpoint_failed", "version": true, "reason": ""}', r"version: Input should be a valid integer"),
        (b'{"event": "returned", "leases": [[1, 0, "worker0", 2]], "seconds": 1}', r"leases\.0\.4: Field required"),
    ],
)
def test_line_that_is_not_an_event_is_named_with_the_reason(path: Path, line: bytes, reason: str) -> None:
    path.write_bytes(JOIN_LINE + line + b"\n" + JOIN_LINE)
    with pytest.raises(PsysError, match=rf"events\.jsonl line 2 is not an event: .*{reason}"):
        list(read_events(path))


def test_missing_file_is_named(path: Path) -> None:
    with pytest.raises(PsysError, match=r"cannot read .*events\.jsonl: No such file"):
        list(read_events(path))


def test_damaged_files_are_refused_in_one_line_or_read(path: Path) -> None:
    write(path, *EVERY_KIND)
    content = path.read_bytes()
    refused = 0
    for seed in range(300):
        path.write_bytes(damaged(content, Random(seed)))
        refused += is_refused(path)
    assert refused > 150


def test_fields_of_another_type_are_refused(path: Path) -> None:
    write(path, *EVERY_KIND)
    values = [json.loads(line) for line in path.read_text().splitlines()]
    refused = 0
    for seed in range(300):
        changed: list[Any] = [
            with_changed_node(value, Random(seed)) if value["event"] != "start" else value for value in values
        ]
        path.write_text("".join(json.dumps(value) + "\n" for value in changed))
        refused += is_refused(path)
    assert refused == 300


def is_refused(path: Path) -> bool:
    message = ""
    try:
        list(read_events(path))
    except PsysError as error:
        message = str(error)
    assert not message or (str(path) in message and len(message) < 1000 and "\n" not in message)
    return bool(message)


@pytest.mark.parametrize(
    "torn", [b'{"event": "upd', b"{", JOIN_LINE[:-1], b"\xc3", b"\0" * 4096, b"x" * (1 << 20)], ids=len
)
def test_torn_last_line_is_removed_when_the_log_is_opened_again(path: Path, torn: bytes) -> None:
    path.write_bytes(JOIN_LINE + torn)
    with EventLog(path) as log:
        assert path.read_bytes() == JOIN_LINE
        log.write(end())
    write(path, JOIN)  # nothing is torn now
    assert list(read_events(path)) == [JOIN, end(), JOIN]


@pytest.mark.parametrize("content", [b"", JOIN_LINE, 2 * JOIN_LINE], ids=len)
def test_opening_a_log_without_a_torn_line_changes_nothing(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    EventLog(path).close()
    assert path.read_bytes() == content


def test_log_of_one_torn_line_becomes_empty(path: Path) -> None:
    path.write_bytes(b'{"event": "sta')
    EventLog(path).close()
    assert path.read_bytes() == b""


def test_log_that_another_process_is_writing_is_not_cut(path: Path) -> None:
    """The last line is not torn: the other process is in the middle of it."""
    with EventLog(path):
        path.write_bytes(b'{"event": "upd')
        with pytest.raises(PsysError, match="still going on"):
            EventLog(path)
        assert path.read_bytes() == b'{"event": "upd'


def test_event_that_a_full_disk_cut_short_is_removed(path: Path) -> None:
    def fill_and_free_the_disk() -> None:
        limit = len(JOIN_LINE) + 10
        with EventLog(path) as log:
            log.write(JOIN)
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(PsysError, match=r"cannot write .*events\.jsonl: No space left"):
                log.write(JOIN)
            assert path.read_bytes() == JOIN_LINE
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            log.write(end())

    assert exit_code_of_child(fill_and_free_the_disk) == 0
    assert list(read_events(path)) == [JOIN, end()]


def test_log_in_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"cannot write .*nowhere.*No such file"):
        EventLog(tmp_path / "nowhere" / "events.jsonl")


def test_surviving_events_leave_out_what_a_resumed_run_computed_again() -> None:
    def snapshot(version: int) -> RunEvent:
        return SnapshotSaved(version=version, epochs=1.0, seconds=1.0)

    begin, resume_at_1 = start("0a1b"), start("0a1b", "resume", version=1)
    checkpoint = CheckpointSaved(version=1, seconds=1.0, took=0.25)
    undone: list[RunEvent] = [update(2), snapshot(2), update(3)]
    again: list[RunEvent] = [update(2, loss=0.5), snapshot(2)]
    assert surviving([]) == []
    assert surviving([begin, JOIN, update(1), *undone]) == [begin, JOIN, update(1), *undone]
    kept: list[RunEvent] = [begin, JOIN, update(1), checkpoint, resume_at_1, *again]
    assert surviving(iter([begin, JOIN, update(1), checkpoint, *undone, resume_at_1, *again])) == kept
    # Resumed for the second time, from an earlier version.
    resume_at_0 = start("0a1b", "resume")
    expected = [begin, JOIN, checkpoint, resume_at_1, resume_at_0, update(1)]
    assert surviving([*kept, resume_at_0, update(1)]) == expected
    # That the run was over does not count any more.
    over: list[RunEvent] = [
        StoppedEarly(best_version=1, best_accuracy=0.5, patience=2.0, seconds=1.0),
        RunDiverged(version=1, batch=3, seconds=1.0),
        end(),
    ]
    assert surviving([begin, update(1), *over]) == [begin, update(1), *over]
    assert surviving([begin, update(1), *over, resume_at_1]) == [begin, update(1), resume_at_1]
    # The snapshot of the checkpoint's own version stays.
    assert surviving([begin, update(1), snapshot(1), resume_at_1]) == [begin, update(1), snapshot(1), resume_at_1]


def test_changed_settings_apply_from_the_version_of_a_later_resume_on() -> None:
    def changed(version: int) -> RunEvent:
        return SettingsChanged(version=version, changed={"schedule.learning_rate": (0.1, 0.05)})

    events: list[RunEvent] = [start("0a1b"), update(1), update(2)]
    at_1, at_2 = (start("0a1b", "resume", version=version) for version in (1, 2))
    kept: list[RunEvent] = [*events, changed(2), at_2]
    assert surviving(kept) == kept
    assert surviving([*kept, update(3), at_2]) == [*kept, at_2]
    assert surviving([*kept, at_1]) == [*events[:2], changed(1), at_2, at_1]

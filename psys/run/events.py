"""`events.jsonl`: the record of a run, one JSON object a line (see psys.ps.events), appended as things happen.

Each line is flushed to the operating system at once, so that a crash of the process loses no event.
"""

import errno
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from psys.errors import PsysError
from psys.files import lock_file
from psys.ps.events import (
    FORMAT,
    RunDiverged,
    RunEnded,
    RunEvent,
    RunStarted,
    SettingsChanged,
    SnapshotEvaluated,
    SnapshotSaved,
    StoppedEarly,
    UpdateApplied,
)
from psys.ps.messages import Evaluated


def _with_time(event: RunEvent) -> RunEvent:
    if event.time is None:
        raise ValueError("'time' is missing")
    return event


_EVENT: TypeAdapter[RunEvent] = TypeAdapter(
    Annotated[RunEvent, Field(discriminator="event"), AfterValidator(_with_time)],
    config=ConfigDict(strict=True, extra="forbid"),
)


class EventLog:
    """The one writer of an `events.jsonl`. A last line that a crash cut short is removed.

    Raises PsysError if another process still has the file open for writing after `wait` seconds: the run is going on.
    """

    def __init__(self, path: Path, wait: float = 0.0) -> None:
        self._path = path
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise PsysError(f"cannot write {path}: {error.strerror}") from None
        if not lock_file(self._file.fileno(), wait):
            self._file.close()
            raise PsysError(f"{path} is being written: the run is still going on")
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)
        self._bytes = self._file.seek(0, os.SEEK_END)

    def write(self, event: RunEvent) -> None:
        """Append one event with the present time, whole or not at all.

        Raises PsysError if the event cannot be written, as on a full disk.
        """
        values = {field.name: getattr(event, field.name) for field in fields(event) if field.name != "time"}
        line = json.dumps({**values, "time": round(time.time(), 3)}).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(self._bytes)
            raise PsysError(f"cannot write {self._path}: {error.strerror}") from None
        self._bytes += len(line)

    def sync(self) -> None:
        """Write all events to the disk: a power cut loses none of them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; another process may write it then."""
        self._file.close()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_events(path: Path) -> Iterator[RunEvent]:
    """Events in order, without a last line that a crash cut short.

    Raises PsysError if the file cannot be read, was written by another version of psys, or has a line that is not an
    event.
    """
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise PsysError(f"cannot read {path}: {error.strerror}") from None
    if lines:
        _check_format(path, lines[0])
    for number, line in enumerate(lines, start=1):
        try:
            yield _EVENT.validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            reason = " ".join(f"{where}: {first['msg']}".removeprefix(": ").split())[:200]
            raise PsysError(
                f"{path} line {number} is not an event: {reason}; the file was changed after it was written"
            ) from None


def surviving(events: Iterable[RunEvent]) -> list[RunEvent]:
    """Events without those that a resume undid: of versions computed again, and that the run was over.

    Settings that were changed at a later version than the resume's apply from the version of the resume on.
    """
    kept: list[RunEvent] = []
    for event in events:
        if isinstance(event, RunStarted) and event.event == "resume":
            kept = [after for before in kept if (after := _resumed(before, event.version))]
        kept.append(event)
    return kept


def _resumed(event: RunEvent, version: int) -> RunEvent | None:
    """What is left of an event once the run was resumed at `version`."""
    match event:
        case UpdateApplied() | SnapshotSaved() | SnapshotEvaluated() if event.version > version:
            return None
        case StoppedEarly() | RunDiverged() | RunEnded():
            return None
        case SettingsChanged() if event.version > version:
            return replace(event, version=version)
    return event


def best_evaluation(events: Iterable[RunEvent]) -> Evaluated | None:
    """The best snapshot of a run, as far as snapshots were evaluated; `events` are the surviving ones."""
    epochs: dict[int, float] = {}
    best: Evaluated | None = None
    for event in events:
        if isinstance(event, SnapshotSaved):
            epochs[event.version] = event.epochs
        elif isinstance(event, SnapshotEvaluated) and event.version in epochs:
            found = Evaluated(event.version, epochs[event.version], event.loss, event.accuracy, event.images)
            best = found if best is None or found.merit > best.merit else best
    return best


def _check_format(path: Path, first_line: bytes) -> None:
    """A run's first event is its start, which has the format of the file."""
    try:
        start = json.loads(first_line)
    except (ValueError, RecursionError):
        return  # read_events names the line
    if isinstance(start, dict) and start.get("event") == "start" and start.get("format") != FORMAT:
        raise PsysError(
            f"{path} was written by another version of psys: it has format {start.get('format', 1)}, "
            f"this version reads format {FORMAT}"
        )

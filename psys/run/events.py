"""The run's diary: one JSON object a line, appended as things happen, flushed so that a crash loses nothing told."""

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from psys.errors import PsysError


class EventLog:
    """The one writer of an `events.jsonl`; every line holds `event` (its kind) and the fields given.

    A last line that a crash cut short is removed.

    Raises PsysError if another process has it open for writing: the run is still going on.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise PsysError(f"cannot write {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise PsysError(f"{path} is being written: the run is still going on") from None
        whole = path.read_bytes()
        if not whole.endswith(b"\n"):
            self._file.truncate(whole.rfind(b"\n") + 1)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event, whole or not at all. Fields must be JSON values. Raises PsysError if there is no room."""
        line = json.dumps({"event": event, **fields}).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(end)
            raise PsysError(f"cannot write {self._path}: {error.strerror}") from None

    def sync(self) -> None:
        """See that a power cut loses nothing told so far."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Events in order; a last line cut short by a crash is left out. Raises PsysError naming any other broken line."""
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise PsysError(f"cannot read {path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict) or "event" not in event:
            raise PsysError(f"{path} line {number} is no event: the file was changed after it was written")
        yield event


def surviving(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without the updates and snapshots that a resumed run was set back before: what led to its end."""
    kept: list[dict[str, Any]] = []
    for event in events:
        if event["event"] == "resume":
            done = event["version"]
            kept = [e for e in kept if e["event"] not in ("update", "snapshot") or e["version"] <= done]
        kept.append(event)
    return kept

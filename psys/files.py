"""Files that are read up to a stated size or written as a whole, and files that one process at a time may write."""

import errno
import fcntl
import json
import time
from pathlib import Path
from typing import Any

_POLL_SECONDS = 0.2


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """Content of a file. Raises OSError if it cannot be read or has more than `limit_bytes`; no more is read."""
    with path.open("rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise OSError(errno.EFBIG, f"more than {limit_bytes:,} bytes", str(path))
    return data


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write a JSON file, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def lock_file(file: int, wait: float = 0.0) -> bool:
    """Lock an open file until it is closed; False if another process still has it locked after `wait` seconds."""
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        else:
            return True

"""Folders that are created atomically."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path`, replacing an existing folder, only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.{state}" for state in ("partial", "old"))
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            path.rename(old)
        partial.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

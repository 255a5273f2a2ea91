"""Results of finished tasks on disk, so that an interrupted preparation can be resumed."""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from psys.errors import PsysError
from psys.files import read_bounded
from psys.segment.task import Failure, Prepared, Recipe

RESULT_BYTES = 2**30
SUFFIX = ".safetensors"


class PartialStore:
    """A folder of finished tasks' results; a file's name is the task's key and the hash of the content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names = dict(self._found())

    @classmethod
    @contextmanager
    def opened(cls, folder: Path) -> Iterator[Self]:
        """Create or open `folder` and lock it for this process. Raises PsysError if another process holds the lock."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when this process ends
            except OSError:
                raise PsysError(f"another process is preparing into {folder}: wait for it or end it") from None
            yield cls(folder)

    def save(self, key: str, prepared: Prepared) -> None:
        """Write a task's result atomically."""
        data = safetensors.numpy.save(_columns(prepared))
        name = f"{key}.{_digest(data)}{SUFFIX}"
        unfinished = self.folder / f"{uuid.uuid4().hex}.unfinished"
        unfinished.write_bytes(data)
        os.replace(unfinished, self.folder / name)
        self._names[key] = name

    def load(self, key: str, recipe: Recipe, count: int) -> Prepared | None:
        """The result of the task `key` of `count` images; None if it is missing or damaged."""
        if (name := self._names.get(key)) is None:
            return None
        try:
            data = read_bounded(self.folder / name, RESULT_BYTES)
            if _digest(data) != name.removeprefix(f"{key}.").removesuffix(SUFFIX):
                return None
            return _checked(safetensors.numpy.load(data), recipe, count)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, RecursionError):
            return None

    def remove(self) -> None:
        """Delete the folder, including results for other settings."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> Iterator[tuple[str, str]]:
        for entry in os.scandir(self.folder):
            if entry.name.endswith(".unfinished"):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
            elif entry.name.endswith(SUFFIX):
                yield entry.name.partition(".")[0], entry.name


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _columns(prepared: Prepared) -> dict[str, NDArray[Any]]:
    columns = {}
    for name in ("rows", "images", "masks", "quality"):
        column = getattr(prepared, name)
        if isinstance(column, tuple):
            columns[f"{name}_ends"] = np.cumsum([len(item) for item in column], dtype=np.int64)
            column = np.frombuffer(b"".join(column), np.uint8)
        columns[name] = np.ascontiguousarray(column)
    failures = json.dumps([list(failure) for failure in prepared.failures]).encode()
    return {**columns, "failures": np.frombuffer(failures, np.uint8)}


def _checked(columns: dict[str, Any], recipe: Recipe, count: int) -> Prepared:
    """The result with these columns. Raises ValueError if they do not fit a task of `count` images."""
    for name in ("images", "masks"):
        if (ends := columns.pop(f"{name}_ends", None)) is not None:
            data = columns[name].tobytes()
            columns[name] = tuple(data[a:b] for a, b in itertools.pairwise([0, *ends.tolist()]))
    failures = tuple(Failure(*entry) for entry in json.loads(columns.pop("failures").tobytes()))
    prepared, empty = Prepared(**columns, failures=failures), Prepared.failed(recipe, ())
    for name in ("rows", "images", "masks", "quality"):
        column, expected = getattr(prepared, name), getattr(empty, name)
        if len(column) != len(prepared.rows) or type(column) is not type(expected):
            raise ValueError(f"{name}: {len(column)} rows")
        if isinstance(column, np.ndarray) and (column.dtype, column.shape[1:]) != (expected.dtype, expected.shape[1:]):
            raise ValueError(f"{name}: {column.dtype} {column.shape}")
    if sorted([*prepared.rows.tolist(), *(failure.row for failure in failures)]) != list(range(count)):
        raise ValueError("rows are missing")
    return prepared

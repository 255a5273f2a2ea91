"""Where an encoded image stands: a file or a piece of one. A million of such references take little memory."""

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self, overload

import numpy as np
from numpy.typing import NDArray

from psys.files import read_bounded

FILE_BYTES = 256 * 2**20  # 2**26 pixels, the most that are decoded, take 192 MiB without any compression


class Span(NamedTuple):
    """Bytes of a file, as those of a tar's member."""

    offset: int
    size: int


class ParquetCell(NamedTuple):
    """A row of a row group of a Parquet file."""

    group: int
    row: int


class Member(NamedTuple):
    """An image in a file of many."""

    path: Path
    key: Span | ParquetCell

    def __str__(self) -> str:
        match self.key:
            case Span(offset, size):
                return f"{self.path} ({size} bytes from byte {offset})"
            case ParquetCell(group, row):
                return f"{self.path} (row {row} of row group {group})"


Reference = Path | Member


class References(Sequence[Reference]):
    """N references, made when they are asked for; a slice is a tuple of them, which may travel."""

    @overload
    def __getitem__(self, index: int) -> Reference: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Reference, ...]: ...
    def __getitem__(self, index: int | slice) -> Reference | tuple[Reference, ...]:
        if isinstance(index, slice):
            return tuple(self._at(row) for row in range(*index.indices(len(self))))
        return self._at(range(len(self))[index])

    @abstractmethod
    def _at(self, row: int) -> Reference: ...

    @abstractmethod
    def take(self, rows: NDArray[np.int64]) -> Self:
        """Those at `rows`, in that order."""

    @abstractmethod
    def marks(self, root: Path) -> Iterator[str]:
        """Of each, in order, what changes when its image does: its file's name under `root`, size, time, and place."""


class Files(References):
    """Files of one image each."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self._root, self._names = root, names  # a name is a third of a Path

    def __len__(self) -> int:
        return len(self._names)

    def _at(self, row: int) -> Path:
        return self._root / self._names[row]

    def take(self, rows: NDArray[np.int64]) -> "Files":
        return Files(self._root, [self._names[row] for row in rows])

    def marks(self, root: Path) -> Iterator[str]:
        folder, below = str(self._root), self._root.relative_to(root)
        return (f"{os.path.join(below, name)}\0{_stamp(os.path.join(folder, name))}" for name in self._names)


class Members(References):
    """Images in files of many: of each the number of its file and its key, `places` (N, 3) int64."""

    def __init__(self, files: Sequence[Path], kind: type[Span] | type[ParquetCell], places: NDArray[np.int64]) -> None:
        self._files, self._kind, self._places = files, kind, places

    def __len__(self) -> int:
        return len(self._places)

    def _at(self, row: int) -> Member:
        file, first, second = self._places[row].tolist()
        return Member(self._files[file], self._kind(first, second))

    def take(self, rows: NDArray[np.int64]) -> "Members":
        return Members(self._files, self._kind, self._places[rows])

    def marks(self, root: Path) -> Iterator[str]:
        marks = [f"{file.relative_to(root)}\0{_stamp(file)}" for file in self._files]
        return (f"{marks[file]}\0{first}\0{second}" for file, first, second in map(np.ndarray.tolist, self._places))


def _stamp(file: Path | str) -> str:
    about = os.stat(file)
    return f"{about.st_size}\0{about.st_mtime_ns}"


def read_encoded(reference: Reference) -> bytes:
    """The bytes of one encoded image; rows of a Parquet file are best asked for in order. Not for threads.

    Raises ValueError saying why they cannot be read, also if there are more than `FILE_BYTES`.
    """
    try:
        if isinstance(reference, Path):
            return read_bounded(reference, FILE_BYTES)
        path, key = reference
        if isinstance(key, Span):
            return _read_span(path, key)
        # Imported here: pyarrow is an extra.
        from psys.data.parquet import read_parquet_image

        return read_parquet_image(path, *key)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error  # the cause tells that it may pass


def _read_span(path: Path, span: Span) -> bytes:
    with path.open("rb") as file:
        file.seek(span.offset)
        data = file.read(span.size)
    if len(data) < span.size:
        raise ValueError("the file ends too early")
    return data

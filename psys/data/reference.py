"""References to encoded images: a whole file or a part of one, stored compactly for millions of images."""

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self, overload

import numpy as np
from numpy.typing import NDArray

FILE_BYTES = 256 * 2**20  # 2**26 pixels, the decoding limit, take 192 MiB without compression


class Span(NamedTuple):
    """A range of bytes in a file, for example a member of a tar archive."""

    offset: int
    size: int


class ParquetCell(NamedTuple):
    """A row of a row group in a Parquet file."""

    group: int
    row: int


class Member(NamedTuple):
    """One image in a file that holds many."""

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
    """N references, created on access; a slice is a tuple of references, which can be sent to another process."""

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
        """The references at `rows`, in that order."""

    @abstractmethod
    def marks(self, root: Path) -> Iterator[str]:
        """For each reference a text that changes with its image: file name under `root`, size, time and position."""


class Files(References):
    """Files that hold one image each."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self._root, self._names = root, names  # a str takes a third of a Path's memory

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
    """Images in files that hold many.

    positions: (N, 3) int64, for each image the index of its file and the two fields of its key.
    """

    def __init__(
        self, files: Sequence[Path], kind: type[Span] | type[ParquetCell], positions: NDArray[np.int64]
    ) -> None:
        self._files, self._kind, self._positions = files, kind, positions

    def __len__(self) -> int:
        return len(self._positions)

    def _at(self, row: int) -> Member:
        file, first, second = self._positions[row].tolist()
        return Member(self._files[file], self._kind(first, second))

    def take(self, rows: NDArray[np.int64]) -> "Members":
        return Members(self._files, self._kind, self._positions[rows])

    def marks(self, root: Path) -> Iterator[str]:
        marks = [f"{file.relative_to(root)}\0{_stamp(file)}" for file in self._files]
        return (f"{marks[file]}\0{first}\0{second}" for file, first, second in map(np.ndarray.tolist, self._positions))


def _stamp(file: Path | str) -> str:
    about = os.stat(file)
    return f"{about.st_size}\0{about.st_mtime_ns}"

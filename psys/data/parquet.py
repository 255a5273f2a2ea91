"""Parquet files of encoded images in Hugging Face's format; the only module that imports pyarrow."""

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psys.data.packed import PackedSplit, check_names
from psys.data.reference import FILE_BYTES, Members, ParquetCell
from psys.errors import PsysError

try:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile
except ModuleNotFoundError:
    raise PsysError("Parquet files need pyarrow: pip install 'psys[parquet]'") from None

IMAGE_COLUMNS = ("image", "img")  # the first that exists, else the only column that can hold images
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
READ_BYTES = 2**20  # read buffer of a column
STRING_BYTES, CONTAINERS = 2**24, 2**22  # limits of a file's footer; 1,000 class names have 30 KB
BATCH_ROWS = 16  # read at once; a photograph has about 100 KB


def read_parquet(files: Sequence[Path]) -> PackedSplit:
    """Labels and references of every row of the files; images are not read.

    Raises PsysError naming a file that is damaged or has no column of images or labels.
    """
    positions: list[NDArray[np.int64]] = []
    codes: list[NDArray[np.int64]] = []
    texts: dict[str, int] = {}
    names: tuple[str, ...] = ()
    for number, path in enumerate(files):
        try:
            with _opened(path) as file:
                _image_column(file.schema_arrow)
                column = _label_column(file.schema_arrow)
                names = names or _class_names(file.schema_arrow, column, path)
                for group in range(file.num_row_groups):
                    labels = _labels(file.read_row_group(group, [column], use_threads=False)[column])
                    if len(labels) != file.metadata.row_group(group).num_rows:
                        raise ValueError(f"row group {group} has {len(labels)} labels, not one for each row")
                    known, which = np.unique(labels, return_inverse=True)
                    code = [texts.setdefault(str(label), len(texts)) for label in known.tolist()]
                    codes.append(np.array(code, np.int64)[which])
                    positions.append(_positions(number, group, len(labels)))
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise PsysError(f"{path} is not a Parquet file of labelled images: {reason}") from None
    if not sum(map(len, codes)):
        raise PsysError(f"{files[0].parent}: the Parquet files have no rows")
    return PackedSplit(
        Members(files, ParquetCell, np.concatenate(positions)), np.concatenate(codes), list(texts), names
    )


def _opened(path: Path) -> ParquetFile:
    # These options read a column page by page; the defaults would read a whole row group of images into memory.
    paging = {"buffer_size": READ_BYTES, "pre_buffer": False}
    return ParquetFile(path, thrift_string_size_limit=STRING_BYTES, thrift_container_size_limit=CONTAINERS, **paging)


def _positions(number: int, group: int, rows: int) -> NDArray[np.int64]:
    return np.stack([np.full(rows, number), np.full(rows, group), np.arange(rows)], axis=1).astype(np.int64)


def _image_column(schema: pa.Schema) -> str:
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    named = [name for name in IMAGE_COLUMNS if name in candidates]
    if not named and len(candidates) != 1:
        raise ValueError(
            f"expected a column {' or '.join(IMAGE_COLUMNS)} with bytes, or one such column; "
            f"it has the columns {', '.join(schema.names)!s:.200}"
        )
    return (named or candidates)[0]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return kind in (pa.binary(), pa.large_binary())


def _label_column(schema: pa.Schema) -> str:
    for name in LABEL_COLUMNS:
        if name in schema.names:
            return name
    raise ValueError(
        f"expected a column of labels ({', '.join(LABEL_COLUMNS)}); it has {', '.join(schema.names)!s:.200}"
    )


def _labels(column: pa.ChunkedArray) -> NDArray[Any]:
    """(N,) integers or strings."""
    if column.null_count:
        raise ValueError(f"{column.null_count} rows have no label")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_integer(kind):
        return np.asarray(column.cast(pa.int64()).to_numpy(), np.int64)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(column.cast(pa.large_string()).to_pylist(), object)
    raise ValueError(f"labels are {kind}, expected integers or strings")


def _class_names(schema: pa.Schema, column: str, path: Path) -> tuple[str, ...]:
    """Class names from Hugging Face's schema metadata; empty if there are none."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = about["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its class names are not strings")
    return check_names(names, str(path))


class _ImageColumn:
    """The images of a row group, read sequentially in batches of rows."""

    def __init__(self, path: Path, modified_ns: int, group: int) -> None:
        self._file, self._group = _opened(path), group
        if group >= self._file.num_row_groups:
            raise ValueError(f"there is no row group {group}")
        self._name = _image_column(self._file.schema_arrow)
        self._rewind()

    def _rewind(self) -> None:
        self._batches: Iterator[pa.RecordBatch] = self._file.iter_batches(
            BATCH_ROWS, [self._group], [self._name], use_threads=False
        )
        self._first, self._values = 0, pa.array([], pa.binary())

    def __getitem__(self, row: int) -> bytes:
        if row < self._first:
            self._rewind()
        while row >= self._first + len(self._values):
            self._first += len(self._values)
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError(f"row group {self._group} has no row {row}")
            values = batch.column(0)
            self._values = values.field("bytes") if pa.types.is_struct(values.type) else values
        value = self._values[row - self._first]
        if not value.is_valid:
            raise ValueError("the row has no image")
        if value.as_buffer().size > FILE_BYTES:
            raise ValueError(f"more than {FILE_BYTES:,} bytes")
        return bytes(value.as_py())


# Two columns: consecutive rows may cross from one row group into the next.
_column = lru_cache(2)(_ImageColumn)


def read_parquet_image(path: Path, group: int, row: int) -> bytes:
    """The encoded image in a row of a row group. Ascending rows read the group once; going back reads it again.

    Raises ValueError with the reason if the image cannot be read.
    """
    try:
        return _column(path, path.stat().st_mtime_ns, group)[row]
    except (pa.ArrowException, OSError) as error:
        _column.cache_clear()
        raise ValueError(" ".join(str(error).split())) from error

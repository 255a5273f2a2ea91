"""Read the bytes of one encoded image from its reference."""

from pathlib import Path

from psys.data.reference import FILE_BYTES, Reference, Span
from psys.files import read_bounded


def read_encoded(reference: Reference) -> bytes:
    """The bytes of one encoded image; not thread-safe. Rows of a Parquet file are read fastest in order.

    Raises ValueError with the reason if the image cannot be read or has more than `FILE_BYTES` bytes.
    """
    try:
        if isinstance(reference, Path):
            return read_bounded(reference, FILE_BYTES)
        path, key = reference
        if isinstance(key, Span):
            return _read_span(path, key)
        # Imported here: pyarrow is an optional dependency.
        from psys.data.parquet import read_parquet_image

        return read_parquet_image(path, *key)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error  # a cause of OSError marks a failure worth a retry


def _read_span(path: Path, span: Span) -> bytes:
    with path.open("rb") as file:
        file.seek(span.offset)
        data = file.read(span.size)
    if len(data) < span.size:
        raise ValueError("the file ends too early")
    return data

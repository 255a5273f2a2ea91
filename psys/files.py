"""Files are read up to a stated size, so that a wrong one costs an error and not the memory."""

import errno
from pathlib import Path


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """Content of a file. Raises OSError if it cannot be read or has more than `limit_bytes`; no more is read."""
    with path.open("rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise OSError(errno.EFBIG, f"more than {limit_bytes:,} bytes", str(path))
    return data

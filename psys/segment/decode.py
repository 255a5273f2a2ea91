"""Decode an image to RGB pixels with its EXIF orientation applied to the pixels and the object's box."""

import struct
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from psys.data.image import JPEG, PIXELS, decode_bounded, decode_with_exif
from psys.segment.boxes import oriented, reduced
from psys.segment.grabcut import Box
from psys.segment.huge import HUGE_PIXELS, decode_huge_png, huge_png_reduction, png_exif

_PNG = b"\x89PNG"
_TIFF = (b"II*\0", b"MM\0*")
_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_ORIENTATION = 0x0112


def decode_upright(data: bytes, box: Box | None = None) -> tuple[NDArray[np.uint8], Box | None]:
    """Decode to RGB pixels (H, W, 3), with the EXIF orientation applied and transparency blended with white.

    Grey is repeated in three channels; a huge JPEG or PNG is reduced in size. `box` is in pixels of the stored image,
    the returned box in pixels of the array. Raises ValueError with the reason if the image cannot be decoded.
    """
    _check_complete(data)
    if (factor := huge_png_reduction(data)) > 1:
        layers, exif = decode_huge_png(data, factor), png_exif(data)
        image = _colours(layers)
    else:
        factor = _jpeg_reduction(data)
        image, exif = decode_with_exif(data, _REDUCED.get(factor, cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION)
        layers = image if data.startswith(JPEG) else decode_bounded(data, cv2.IMREAD_UNCHANGED)
    _blend_with_white(image, layers)
    already_oriented = data.startswith(_TIFF)  # OpenCV ignores IMREAD_IGNORE_ORIENTATION for TIFF
    orientation = _orientation(data if already_oriented else exif)
    if box is not None:
        stored = image.shape[:2] if not already_oriented or orientation < 5 else image.shape[1::-1]
        box = oriented(reduced(box, factor), orientation, width=stored[1], height=stored[0])
    upright = image if already_oriented else _upright(image, orientation)
    return cv2.cvtColor(upright, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False), box


def _colours(layers: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert pixels from cv2.IMREAD_UNCHANGED to those of cv2.IMREAD_COLOR."""
    eight_bits = layers if layers.dtype == np.uint8 else (layers >> 8).astype(np.uint8)
    if layers.ndim == 2:
        return np.asarray(cv2.cvtColor(eight_bits, cv2.COLOR_GRAY2BGR), np.uint8)
    return np.ascontiguousarray(eight_bits[:, :, :3])


def _check_complete(data: bytes) -> None:
    # OpenCV fills the missing part of a truncated file with grey, without an error.
    if not data:
        raise ValueError("the file is empty")
    end = b"\xff\xd9" if data.startswith(JPEG) else b"IEND" if data.startswith(_PNG) else b""
    if end not in data[len(data) // 2 :]:
        raise ValueError("the file ends too early")


def _jpeg_reduction(data: bytes) -> int:
    """The divisor of the sides with which a JPEG is decoded within the pixel limit; 1 for other formats."""
    at = 2
    while data.startswith(JPEG) and at + 9 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker in (0xC0, 0xC1):  # baseline: progressive ones are decoded in full before any reduction
            pixels = int.from_bytes(data[at + 5 : at + 7]) * int.from_bytes(data[at + 7 : at + 9])
            fitting = (factor for factor in (1, 2, 4, 8) if pixels <= PIXELS * factor**2)
            return next(fitting, 1) if pixels <= HUGE_PIXELS else 1
        at += 1 if marker == 0xFF else 2 + length
    return 1


def _blend_with_white(image: NDArray[np.uint8], layers: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    if layers.ndim < 3 or layers.shape[2] != 4:
        return
    top = float(np.iinfo(layers.dtype).max)
    for row, opaque in zip(image, layers[:, :, 3:], strict=True):  # row by row: less memory for floats
        row[:] = np.rint(row * (opaque / top) + 255 * (1 - opaque / top))


def _orientation(tiff: bytes) -> int:
    """The orientation, 1 to 8, in an EXIF block, which has TIFF format; 1 if there is none."""
    order = "<" if tiff.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(entries):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * entry)
            if (tag, kind, count) == (_ORIENTATION, 3, 1):
                return value if 1 <= value <= 8 else 1
    except struct.error:  # a damaged block is treated as absent
        pass
    return 1


def _upright(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    rotated = image.swapaxes(0, 1) if orientation >= 5 else image
    if orientation in (2, 3, 6, 7):
        rotated = rotated[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rotated = rotated[::-1]
    return np.ascontiguousarray(rotated)

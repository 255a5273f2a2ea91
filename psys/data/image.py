"""Encoded images -> pixels, within bounds: a small file cannot take all memory or all day."""

import os
import re
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

EXTENSIONS = ("bmp", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp")  # of files that are taken for images
JPEG = b"\xff\xd8"
PIXELS = int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])  # set in psys/__init__ if not before
# Each scan of a progressive JPEG costs a pass over all its pixels and may take 50 bytes; usual are ten.
JPEG_SCANS = 100
_JPEG_SCAN = re.compile(rb"\xff\xda\0[\x08\x0a\x0c\x0e][\1-\4]")


def decode_bounded(data: bytes, flags: int) -> NDArray[Any]:
    """Pixels of an encoded image as cv2.imdecode gives them: (H, W, channels), blue first.

    Raises ValueError saying what is wrong with `data`; more pixels than the limit in `psys/__init__` are not decoded.
    """
    return decode_with_exif(data, flags)[0]


def decode_with_exif(data: bytes, flags: int) -> tuple[NDArray[Any], bytes]:
    """As `decode_bounded`, and the image's EXIF block (a TIFF), empty if it has none or is a TIFF itself."""
    if data.startswith(JPEG) and len(_JPEG_SCAN.findall(data)) > JPEG_SCANS:
        raise ValueError(f"a JPEG of more than {JPEG_SCANS} scans")
    pixels: NDArray[Any] | None = None
    kinds: Sequence[int] = ()
    blocks: Sequence[NDArray[Any]] = ()
    try:
        if data:
            pixels, kinds, blocks = cv2.imdecodeWithMetadata(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in error.err:
            raise ValueError(f"more pixels than OPENCV_IO_MAX_IMAGE_PIXELS={PIXELS} allows") from None
    if pixels is None:
        raise ValueError("not an image, or of a format that OpenCV cannot decode")
    exif = (block for kind, block in zip(kinds, blocks, strict=True) if kind == cv2.IMAGE_METADATA_EXIF)
    return pixels, b"".join(bytes(np.asarray(block)) for block in exif)

"""Decode images within limits on pixels and work, so that a crafted file cannot exhaust memory or time."""

import os
import re
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

EXTENSIONS = ("bmp", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp")  # of image files in a folder
JPEG = b"\xff\xd8"
PIXELS = int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])  # psys/__init__ sets a default
# Each scan of a progressive JPEG is a pass over all pixels and may take only 50 bytes; ten scans are usual.
JPEG_SCANS = 100
_JPEG_SCAN = re.compile(rb"\xff\xda\0[\x08\x0a\x0c\x0e][\1-\4]")


def decode_bounded(data: bytes, flags: int) -> NDArray[Any]:
    """Decode an image as cv2.imdecode does: (H, W, channels) in BGR order.

    Raises ValueError with the reason, also for an image of more than `PIXELS` pixels, which is not decoded.
    """
    return decode_with_exif(data, flags)[0]


def decode_with_exif(data: bytes, flags: int) -> tuple[NDArray[Any], bytes]:
    """Decode as `decode_bounded` does; also return the EXIF block, empty if there is none or the image is a TIFF."""
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
        raise ValueError("not an image in a format that OpenCV can decode")
    exif = (block for kind, block in zip(kinds, blocks, strict=True) if kind == cv2.IMAGE_METADATA_EXIF)
    return pixels, b"".join(bytes(np.asarray(block)) for block in exif)

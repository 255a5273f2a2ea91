"""Encoded images -> pixels, within bounds: a small file cannot take all memory or all day."""

import os
import re
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

JPEG = b"\xff\xd8"
# Each scan of a progressive JPEG costs a pass over all its pixels and may take 50 bytes; usual are ten.
JPEG_SCANS = 100
_JPEG_SCAN = re.compile(rb"\xff\xda\0[\x08\x0a\x0c\x0e][\1-\4]")


def decode_image(data: bytes, flags: int) -> NDArray[Any]:
    """Pixels of an encoded image as cv2.imdecode gives them: (H, W, channels), blue first.

    Raises ValueError saying what is wrong with `data`; more pixels than the limit in `psys/__init__` are not decoded.
    """
    if data.startswith(JPEG) and len(_JPEG_SCAN.findall(data)) > JPEG_SCANS:
        raise ValueError(f"a JPEG of more than {JPEG_SCANS} scans")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in error.err:
            limit = os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"]
            raise ValueError(f"more pixels than OPENCV_IO_MAX_IMAGE_PIXELS={limit} allows") from None
        pixels = None
    if pixels is None:
        raise ValueError("not an image, or of a format that OpenCV cannot decode")
    return pixels

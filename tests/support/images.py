"""Encode test images, and read images as actors do."""

import cv2
import numpy as np
from numpy.typing import NDArray

from psys.data.dataset import DatasetSplit
from psys.data.read import read_encoded
from psys.data.reference import Reference
from psys.segment.decode import decode_upright

Image = NDArray[np.uint8]  # (H, W, 3), or (N, H, W, 3) for several
Mask = NDArray[np.bool_]  # (H, W), or (N, H, W) for several


def pixels_of(split: DatasetSplit) -> Image:
    """The images (N, H, W, 3) of a split in memory."""
    assert isinstance(split.images, np.ndarray)
    return split.images


def encoded(image: Image, suffix: str = ".png", *options: int) -> bytes:
    """Encode an RGB image with OpenCV's `options`."""
    success, data = cv2.imencode(suffix, image[..., ::-1], list(options))
    assert success
    return data.tobytes()


def read_image(reference: Reference) -> Image:
    """RGB pixels (H, W, 3). Raises ValueError with the reason if the image cannot be read."""
    return decode_upright(read_encoded(reference))[0]

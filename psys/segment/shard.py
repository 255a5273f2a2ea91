"""What one actor does with one shard: decode, bring to the store's size, segment, gate."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from psys.data.image import JPEG, decode_image
from psys.files import read_bounded
from psys.segment.grabcut import segment
from psys.segment.quality import GateConfig, is_usable, measure

FILE_BYTES = 256 * 2**20  # 2**26 pixels, the most that are decoded, take 192 MiB without any compression


@dataclass(frozen=True)
class Shard:
    """A slice of a split, small enough to travel: pixels, or paths that the actor can read."""

    split: str
    images: NDArray[np.uint8] | tuple[Path, ...]  # (B, H, W, 3) RGB, or B paths
    labels: NDArray[np.int64]  # (B,)


@dataclass(frozen=True)
class Prepared:
    """Rows for the store, K <= B in the shard's order, and the images that could not be read: (file, reason)."""

    split: str
    images: NDArray[np.uint8]  # (K, size, size, 3)
    labels: NDArray[np.int64]  # (K,)
    masks: NDArray[np.bool_]  # (K, size, size)
    shares: NDArray[np.float32]  # (K,)
    usable: NDArray[np.bool_]  # (K,)
    unreadable: tuple[tuple[str, str], ...]


def prepare_shard(shard: Shard, size: int, gate: GateConfig) -> Prepared:
    """Decode, crop, segment and resize every image of a shard; an unreadable file is reported, never raised."""
    kept, images, masks, unreadable = [], [], [], []
    for index, item in enumerate(shard.images):
        try:
            image = read_image(item) if isinstance(item, Path) else item
        except ValueError as error:
            unreadable.append((str(item), str(error)))
            continue
        square = center_square(image)
        kept.append(index)
        images.append(_resize(square, size))
        masks.append(_resize(segment(square).astype(np.uint8) * 255, size) > 127)
    pixels = np.array(images, np.uint8).reshape(-1, size, size, 3)
    foreground = np.array(masks, np.bool_).reshape(-1, size, size)
    quality = np.array([measure(*pair) for pair in zip(pixels, foreground, strict=True)], np.float32).reshape(-1, 4)
    return Prepared(
        shard.split, pixels, shard.labels[kept], foreground, quality[:, 0], is_usable(quality, gate), tuple(unreadable)
    )


def read_image(path: Path) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3) of an image file: upright by its EXIF, grey repeated, transparency laid on white.

    Raises ValueError saying why the file cannot be read.
    """
    try:
        data = read_bounded(path, FILE_BYTES)
    except OSError as error:
        raise ValueError(error.strerror) from None
    _check_complete(data)
    image = decode_image(data, cv2.IMREAD_COLOR)
    layers = image if data.startswith(JPEG) else decode_image(data, cv2.IMREAD_UNCHANGED)
    if layers.ndim == 3 and layers.shape[2] == 4:
        top = 255.0 if layers.dtype == np.uint8 else 65535.0
        for row, opaque in zip(image, layers[:, :, 3:], strict=True):  # floats of a whole large image would fill memory
            row[:] = np.rint(row * (opaque / top) + 255 * (1 - opaque / top))
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


_PNG = b"\x89PNG"


def _check_complete(data: bytes) -> None:
    # OpenCV fills the missing part of a cut file with grey and says nothing.
    if not data:
        raise ValueError("the file is empty")
    end = b"\xff\xd9" if data.startswith(JPEG) else b"IEND" if data.startswith(_PNG) else b""
    if end not in data[len(data) // 2 :]:
        raise ValueError("the file ends too early")


def center_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The largest centred square of (H, W, 3): with the resize after it, the usual crop of the scaled short side."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def _resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if image.shape[0] == size:
        return image
    how = cv2.INTER_AREA if image.shape[0] > size else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=how).astype(np.uint8, copy=False)

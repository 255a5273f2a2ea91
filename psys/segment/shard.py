"""What one actor does with one shard: decode, bring to the store's size, segment, gate."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from psys.data.encoded import encode_image, encode_mask
from psys.data.image import JPEG, decode_image
from psys.data.reference import Reference, read_encoded
from psys.data.store import Layout
from psys.segment.grabcut import segment
from psys.segment.quality import GateConfig, foreground_share, is_usable


@dataclass(frozen=True)
class Shard:
    """A slice of a split, small enough to travel: pixels, or references that the actor can read."""

    split: str
    images: NDArray[np.uint8] | tuple[Reference, ...]  # (B, H, W, 3) RGB, or B of `read_encoded`
    labels: NDArray[np.int64]  # (B,)


@dataclass(frozen=True)
class Prepared:
    """Rows for the store, K <= B in the shard's order, and the images that could not be read: (file, reason)."""

    split: str
    images: NDArray[np.uint8] | tuple[bytes, ...]  # (K, size, size, 3), or K encoded ones
    labels: NDArray[np.int64]  # (K,)
    masks: NDArray[np.bool_] | tuple[bytes, ...]  # (K, size, size), or K encoded ones
    quality: NDArray[np.float32]  # (K, Q)
    usable: NDArray[np.bool_]  # (K,)
    unreadable: tuple[tuple[str, str], ...]


def prepare_shard(shard: Shard, size: int, gate: GateConfig, layout: Layout = "dense") -> Prepared:
    """Decode, segment and resize every image of a shard; an unreadable file is reported, never raised.

    dense: the middle square of each, `size` pixels wide; encoded: the whole of each, its short side `size` at most.
    """
    kept, images, masks, shares, unreadable = [], [], [], [], []
    for index, item in enumerate(shard.images):
        try:
            image = item if isinstance(item, np.ndarray) else read_image(item)
        except ValueError as error:
            unreadable.append((str(item), str(error)))
            continue
        if layout == "dense":
            image = center_square(image)
        pixels = _resize(image, size, layout == "dense")
        mask = _resize(segment(image).astype(np.uint8) * 255, size, layout == "dense") > 127
        kept.append(index)
        images.append(pixels)
        masks.append(mask)
        shares.append(foreground_share(mask))
    of_masks = np.array(shares, np.float32)
    stored = (
        (np.array(images, np.uint8).reshape(-1, size, size, 3), np.array(masks, np.bool_).reshape(-1, size, size))
        if layout == "dense"
        else (tuple(map(encode_image, images)), tuple(map(encode_mask, masks)))
    )
    return Prepared(
        shard.split,
        stored[0],
        shard.labels[kept],
        stored[1],
        of_masks[:, None],
        is_usable(of_masks, gate),
        tuple(unreadable),
    )


def read_image(reference: Reference) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3) of an encoded image: upright by its EXIF, grey repeated, transparency laid on white.

    Raises ValueError saying why it cannot be read.
    """
    data = read_encoded(reference)
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


def _resize(image: NDArray[np.uint8], short_side: int, enlarge: bool = True) -> NDArray[np.uint8]:
    now = min(image.shape[:2])
    if now == short_side or (now < short_side and not enlarge):
        return image
    height, width = (round(side * short_side / now) for side in image.shape[:2])
    how = cv2.INTER_AREA if now > short_side else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=how).astype(np.uint8, copy=False)

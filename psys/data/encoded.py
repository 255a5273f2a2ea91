"""Images that a store keeps encoded, masks beside them: JPEG and one-bit PNG, decoded by threads when asked for."""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from psys.errors import PsysError

QUALITY = 95  # of JPEG, with colours at half the resolution
MOST_PIXELS = 2**26  # of an image that is decoded
Size = tuple[int, int]  # height, width


class RecordLocation(NamedTuple):
    """Where a record stands: a row of the index. The mask follows the image."""

    shard: int
    offset: int
    image_bytes: int
    mask_bytes: int


def encode_image(image: NDArray[np.uint8]) -> bytes:
    """JPEG of an RGB image (H, W, 3)."""
    return _written(Image.fromarray(image), format="JPEG", quality=QUALITY)


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """PNG of one bit a pixel of a mask (H, W)."""
    return _written(Image.fromarray(mask), format="PNG")


def _written(image: Image.Image, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **how)
    return buffer.getvalue()


def decode_image(data: bytes, size: Size) -> NDArray[np.uint8]:
    """The middle of a JPEG, as much of it as has the shape of `size`, brought to that size: (H, W, 3) RGB."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        _check_pixels(image)
        image.draft("RGB", (size[1], size[0]))  # decoded at a half, a quarter, an eighth where that is large enough
        pixels: NDArray[np.uint8] = np.asarray(_fitted(image, size).convert("RGB"))
        return pixels


def decode_mask(data: bytes, size: Size) -> NDArray[np.uint8]:
    """The same of a mask: (ceil(H * W / 8),), packed as np.packbits does."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        _check_pixels(image)
        bits: NDArray[np.uint8] = np.packbits(np.asarray(_fitted(image.convert("L"), size)) > 127)
        return bits


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"more than {MOST_PIXELS:,} pixels")


def _fitted(image: Image.Image, size: Size) -> Image.Image:
    height, width = size
    scale = min(image.width / width, image.height / height)
    across, down = round(width * scale), round(height * scale)
    left, top = (image.width - across) // 2, (image.height - down) // 2
    how = Image.Resampling.BOX if scale > 1 else Image.Resampling.BILINEAR
    return image.resize((width, height), how, (left, top, left + across, top + down))


class Decoded:
    """Images or masks of a split, decoded when rows are asked for: to its readers an array of shape (N, ...) uint8."""

    def __init__(self, shards: Sequence[Path], index: NDArray[np.int64], size: Size, masks: bool = False) -> None:
        self._shards, self._index, self._size, self._masks = shards, index, size, masks
        self._decode: Callable[[bytes, Size], NDArray[np.uint8]] = decode_mask if masks else decode_image
        row = (-(-size[0] * size[1] // 8),) if masks else (*size, 3)
        self.shape = (len(index), *row)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, rows: int | np.integer[Any] | slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Of one row (...), of several (B, ...). Raises PsysError naming the row that cannot be decoded."""
        if not isinstance(rows, slice | np.ndarray):
            row: NDArray[np.uint8] = self[np.array([rows])][0]
            return row
        numbers = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        decoded = np.empty((len(numbers), *self.shape[1:]), np.uint8)

        def fill(part: NDArray[np.int64]) -> None:
            for at in part:
                decoded[at] = self._row(int(numbers[at]))

        pool, threads = _decoders()
        parts = [part for part in np.array_split(np.arange(len(numbers)), threads) if len(part)]
        for _ in pool.map(fill, parts):
            pass
        return decoded

    def _row(self, number: int) -> NDArray[np.uint8]:
        place = RecordLocation(*self._index[number].tolist())
        start, length = place.offset, place.image_bytes
        if self._masks:
            start, length = start + length, place.mask_bytes
        data = _bytes_of(self._shards[place.shard])[start : start + length].tobytes()
        try:
            return self._decode(data, self._size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow knows them all
            what = "mask" if self._masks else "image"
            raise PsysError(
                f"{self._shards[place.shard]}: the {what} at byte {start} cannot be decoded ({error}): "
                "prepare the store again"
            ) from None


@cache
def _bytes_of(shard: Path) -> NDArray[np.uint8]:
    return np.memmap(shard, np.uint8, mode="r")


@cache
def _decoders() -> tuple[ThreadPoolExecutor, int]:
    # Threads, for Pillow lets go of the interpreter while it decodes and resizes.
    threads = len(os.sched_getaffinity(0))
    return ThreadPoolExecutor(threads, "decoder"), threads

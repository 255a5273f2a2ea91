"""Encoded images and masks of a store: JPEG and one-bit PNG, decoded by a thread pool on access."""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from psys.cores import available_cores
from psys.errors import PsysError

QUALITY = 95  # of JPEG, with chroma at half the resolution
MAX_PIXELS = 2**26  # of an image that is decoded
Size = tuple[int, int]  # height, width


class RecordLocation(NamedTuple):
    """A row of the index: the position of an image and, directly after it, its mask."""

    file: int  # number of the record file
    offset: int
    image_bytes: int
    mask_bytes: int


def encode_image(image: NDArray[np.uint8]) -> bytes:
    """Encode an RGB image (H, W, 3) as JPEG."""
    return _saved(Image.fromarray(image), format="JPEG", quality=QUALITY)


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """Encode a mask (H, W) as PNG with one bit per pixel."""
    return _saved(Image.fromarray(mask), format="PNG")


def _saved(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def decode_image(data: bytes, size: Size) -> NDArray[np.uint8]:
    """Decode a JPEG, crop its largest centred area with the aspect ratio of `size`, and resize it: (H, W, 3) RGB."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        _check_pixels(image)
        image.draft("RGB", (size[1], size[0]))  # decodes at 1/2, 1/4 or 1/8 of the size where that is large enough
        pixels: NDArray[np.uint8] = np.asarray(_cropped(image, size).convert("RGB"))
        return pixels


def decode_mask(data: bytes, size: Size) -> NDArray[np.uint8]:
    """Decode, crop and resize a mask as `decode_image` does: (ceil(H * W / 8),), packed as by np.packbits."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        _check_pixels(image)
        bits: NDArray[np.uint8] = np.packbits(np.asarray(_cropped(image.convert("L"), size)) > 127)
        return bits


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels")


def _cropped(image: Image.Image, size: Size) -> Image.Image:
    height, width = size
    scale = min(image.width / width, image.height / height)
    across, down = round(width * scale), round(height * scale)
    left, top = (image.width - across) // 2, (image.height - down) // 2
    resampling = Image.Resampling.BOX if scale > 1 else Image.Resampling.BILINEAR
    return image.resize((width, height), resampling, (left, top, left + across, top + down))


class Decoded:
    """Images or masks of a split, decoded on access; indexed like an array of shape (N, ...) uint8."""

    def __init__(self, files: Sequence[Path], index: NDArray[np.int64], size: Size, masks: bool = False) -> None:
        self._files, self._index, self._size, self._masks = files, index, size, masks
        self._decode: Callable[[bytes, Size], NDArray[np.uint8]] = decode_mask if masks else decode_image
        row = (-(-size[0] * size[1] // 8),) if masks else (*size, 3)
        self.shape = (len(index), *row)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, rows: int | np.integer[Any] | slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """One row (...) or several (B, ...). Raises PsysError naming the file and offset of a damaged row."""
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
        location = RecordLocation(*self._index[number].tolist())
        start, length = location.offset, location.image_bytes
        if self._masks:
            start, length = start + length, location.mask_bytes
        data = _bytes_of(self._files[location.file])[start : start + length].tobytes()
        try:
            return self._decode(data, self._size)
        except (
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
        ) as error:  # raised by Pillow
            what = "mask" if self._masks else "image"
            raise PsysError(
                f"{self._files[location.file]}: the {what} at byte {start} cannot be decoded ({error}): "
                "prepare the store again"
            ) from None


@cache
def _bytes_of(file: Path) -> NDArray[np.uint8]:
    return np.memmap(file, np.uint8, mode="r")


@cache
def _decoders() -> tuple[ThreadPoolExecutor, int]:
    # Threads suffice: Pillow releases the GIL while it decodes and resizes.
    threads = available_cores()
    return ThreadPoolExecutor(threads, "decoder"), threads

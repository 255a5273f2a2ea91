"""Writes a prepared store, rows in order, without holding it in memory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from psys.data.encoded import Decoded, RecordLocation, Size
from psys.data.store import FORMAT, INDEX, MANIFEST, VERSION, StoreLayout, columns_of, hash_of, shard_name

SHARD_BYTES = 2**30  # after which an encoded store begins another file of records
COLOURED = 4096  # training images of an encoded store that its channel means are taken of, spread evenly


class StoreWriter:
    """Writes a store into a folder; `close` writes the manifest. `quality` names the figures of a mask."""

    def __init__(
        self,
        folder: Path,
        splits: Sequence[str],
        image_size: Size,
        quality: Sequence[str],
        layout: StoreLayout = "dense",
    ) -> None:
        self._folder, self._image_size, self._quality, self._layout = folder, image_size, quality, layout
        self._files = {
            split: {
                column: _NpyAppender(folder / f"{split}_{column}.npy", dtype, row)
                for column, (dtype, row) in columns_of(layout, image_size, len(quality)).items()
            }
            for split in splits
        }
        self._records = {split: _Records(folder, split) for split in splits if layout == "encoded"}
        self._colours = _Colours()

    def append(
        self,
        split: str,
        images: NDArray[np.uint8] | Sequence[bytes],
        labels: NDArray[np.int64],
        masks: NDArray[np.bool_] | Sequence[bytes],
        quality: NDArray[np.float32],
        usable: NDArray[np.bool_],
    ) -> None:
        """Add B rows: images (B, H, W, 3), labels (B,), masks (B, H, W), quality (B, Q), usable (B,).

        To an encoded store images and masks come as `encode_image` and `encode_mask` write them, of any size.
        """
        rows: dict[str, NDArray[Any]] = {"labels": labels, "quality": quality, "usable": usable}
        if self._layout == "encoded":
            pairs = zip(images, masks, strict=True)
            places = [self._records[split].append(bytes(image), bytes(mask)) for image, mask in pairs]
            rows[INDEX] = np.array(places, np.int64).reshape(-1, len(RecordLocation._fields))
        else:
            pixels, bits = np.asarray(images), np.asarray(masks)
            rows |= {"images": pixels, "masks": np.packbits(bits.reshape(len(bits), -1), axis=1)}
            if split == "train":
                self._colours.add(pixels)
        for column, values in rows.items():
            self._files[split][column].append(values)

    def close(self, classes: Sequence[str], splits: dict[str, Any], **about: Any) -> None:
        """Finish the files and write the manifest: `splits` describes each split, `about` the store as a whole."""
        counts = {split: self._files[split]["labels"].count for split in self._files}
        for split, columns in self._files.items():
            for column in columns.values():
                column.close()
            if split in self._records:
                self._records[split].close()
        if self._layout == "encoded":
            self._add_colours(counts["train"])
        mean, deviation = self._colours.mean_and_deviation()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **about,
            "layout": self._layout,
            "classes": list(classes),
            "quality": list(self._quality),
            "image_size": list(self._image_size),
            "channel_mean": mean.tolist(),
            "channel_std": deviation.tolist(),
            "splits": {split: {"count": counts[split], **splits[split]} for split in self._files},
            "files": {
                path.name: {"bytes": path.stat().st_size, "sha256": hash_of(path)}
                for path in sorted(self._folder.iterdir())
                if path.suffix in (".npy", ".bin")
            },
        }
        (self._folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")

    def _add_colours(self, count: int) -> None:
        index = np.load(self._folder / f"train_{INDEX}.npy", mmap_mode="r")
        images = Decoded(self._records["train"].shards, index, self._image_size)
        spread = np.linspace(0, count - 1, min(count, COLOURED)).astype(np.int64)
        for first in range(0, len(spread), 64):
            self._colours.add(images[spread[first : first + 64]])


class _Colours:
    """Mean and deviation of each channel, 0..1."""

    def __init__(self) -> None:
        # Integers: the sums are exact, so mean and deviation do not depend on how the images were batched.
        self._sum, self._sum_of_squares, self._pixels = np.zeros(3, np.int64), np.zeros(3, np.int64), 0

    def add(self, images: NDArray[np.uint8]) -> None:
        values = images.reshape(-1, 3).astype(np.int64)
        self._sum += values.sum(axis=0)
        self._sum_of_squares += (values**2).sum(axis=0)
        self._pixels += len(values)

    def mean_and_deviation(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mean = self._sum / self._pixels / 255
        return mean, np.sqrt(np.maximum(self._sum_of_squares / self._pixels / 255**2 - mean**2, 0))


class _Records:
    """Encoded images and masks of a split, one after the other, in files of about `SHARD_BYTES`."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        self.shards: list[Path] = []
        self._file: BinaryIO | None = None

    def append(self, image: bytes, mask: bytes) -> RecordLocation:
        if self._file is None or self._file.tell() >= SHARD_BYTES:
            self.close()
            self.shards.append(self._folder / shard_name(self._split, len(self.shards)))
            self._file = self.shards[-1].open("wb")
        place = RecordLocation(len(self.shards) - 1, self._file.tell(), len(image), len(mask))
        self._file.write(image + mask)
        return place

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _NpyAppender:
    """A .npy file whose number of rows is known only at the end: numpy's header leaves room for it to grow."""

    def __init__(self, path: Path, dtype: DTypeLike, row: tuple[int, ...]) -> None:
        self.count = 0
        self._dtype, self._row = np.dtype(dtype), row
        self._file: BinaryIO = path.open("wb")
        self._write_header()
        self._start = self._file.tell()

    def append(self, values: NDArray[Any]) -> None:
        if values.shape[1:] != self._row or values.dtype != self._dtype:
            raise ValueError(f"rows of {self._dtype} {self._row} expected, got {values.dtype} {values.shape[1:]}")
        self._file.write(np.ascontiguousarray(values).tobytes())
        self.count += len(values)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == self._start
        self._file.close()

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.count, *self._row)}
        np.lib.format.write_array_header_1_0(self._file, header)

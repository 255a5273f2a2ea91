"""Write a prepared store row by row, without holding it in memory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from psys.data.encoded import Decoded, RecordLocation, Size
from psys.data.store import FORMAT, INDEX, MANIFEST, VERSION, StoreLayout, columns_of, hash_of, record_file_name

RECORD_FILE_BYTES = 2**30  # size after which an encoded store starts another record file
SAMPLED = 4096  # evenly spaced training images from which an encoded store's channel statistics are computed


class StoreWriter:
    """Writes a store into a folder; `close` writes the manifest. `quality` names the metrics of a mask."""

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
        self._statistics = _ChannelStatistics()

    def append(
        self,
        split: str,
        images: NDArray[np.uint8] | Sequence[bytes],
        labels: NDArray[np.int64],
        masks: NDArray[np.bool_] | Sequence[bytes],
        quality: NDArray[np.float32],
        usable: NDArray[np.bool_],
    ) -> None:
        """Append B rows: images (B, H, W, 3), labels (B,), masks (B, H, W), quality (B, Q), usable (B,).

        For an encoded store images and masks are the bytes from `encode_image` and `encode_mask`, of any image size.
        """
        rows: dict[str, NDArray[Any]] = {"labels": labels, "quality": quality, "usable": usable}
        if self._layout == "encoded":
            pairs = zip(images, masks, strict=True)
            locations = [self._records[split].append(bytes(image), bytes(mask)) for image, mask in pairs]
            rows[INDEX] = np.array(locations, np.int64).reshape(-1, len(RecordLocation._fields))
        else:
            pixels, bits = np.asarray(images), np.asarray(masks)
            rows |= {"images": pixels, "masks": np.packbits(bits.reshape(len(bits), -1), axis=1)}
            if split == "train":
                self._statistics.add(pixels)
        for column, values in rows.items():
            self._files[split][column].append(values)

    def close(self, classes: Sequence[str], splits: dict[str, Any], **about: Any) -> None:
        """Close the files and write the manifest with the fields `splits` of each split and `about` of the store."""
        counts = {split: self._files[split]["labels"].count for split in self._files}
        for split, columns in self._files.items():
            for column in columns.values():
                column.close()
            if split in self._records:
                self._records[split].close()
        if self._layout == "encoded":
            self._sample_statistics(counts["train"])
        mean, std = self._statistics.mean_and_std()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **about,
            "layout": self._layout,
            "classes": list(classes),
            "quality": list(self._quality),
            "image_size": list(self._image_size),
            "channel_mean": mean.tolist(),
            "channel_std": std.tolist(),
            "splits": {split: {"count": counts[split], **splits[split]} for split in self._files},
            "files": {
                path.name: {"bytes": path.stat().st_size, "sha256": hash_of(path)}
                for path in sorted(self._folder.iterdir())
                if path.suffix in (".npy", ".bin")
            },
        }
        (self._folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")

    def _sample_statistics(self, count: int) -> None:
        index = np.load(self._folder / f"train_{INDEX}.npy", mmap_mode="r")
        images = Decoded(self._records["train"].files, index, self._image_size)
        sampled = np.linspace(0, count - 1, min(count, SAMPLED)).astype(np.int64)
        for first in range(0, len(sampled), 64):
            self._statistics.add(images[sampled[first : first + 64]])


class _ChannelStatistics:
    """Mean and standard deviation of each channel, for pixel values scaled to 0..1."""

    def __init__(self) -> None:
        # Integer sums are exact, so the result does not depend on how the images were batched.
        self._sum, self._sum_of_squares, self._pixels = np.zeros(3, np.int64), np.zeros(3, np.int64), 0

    def add(self, images: NDArray[np.uint8]) -> None:
        values = images.reshape(-1, 3).astype(np.int64)
        self._sum += values.sum(axis=0)
        self._sum_of_squares += (values**2).sum(axis=0)
        self._pixels += len(values)

    def mean_and_std(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mean = self._sum / self._pixels / 255
        return mean, np.sqrt(np.maximum(self._sum_of_squares / self._pixels / 255**2 - mean**2, 0))


class _Records:
    """Encoded images and masks of a split, written in order to files of about `RECORD_FILE_BYTES`."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        self.files: list[Path] = []
        self._file: BinaryIO | None = None

    def append(self, image: bytes, mask: bytes) -> RecordLocation:
        if self._file is None or self._file.tell() >= RECORD_FILE_BYTES:
            self.close()
            self.files.append(self._folder / record_file_name(self._split, len(self.files)))
            self._file = self.files[-1].open("wb")
        location = RecordLocation(len(self.files) - 1, self._file.tell(), len(image), len(mask))
        self._file.write(image + mask)
        return location

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _NpyAppender:
    """A .npy file that is extended row by row; numpy's header has room for the final number of rows."""

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

"""The prepared store: images, labels and foreground masks on disk, memory-mapped by training."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray
from pydantic import ConfigDict, Field

from psys.config import Config, validate
from psys.errors import PsysError
from psys.files import read_bounded

FORMAT = "psys-store"
VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_BYTES = 16 * 2**20  # 100,000 skipped images fill it; JSON may take 30 times its bytes


class Split(NamedTuple):
    """Arrays of one split, memory-mapped; N images of H x W pixels."""

    images: NDArray[np.uint8]  # (N, H, W, 3), RGB
    labels: NDArray[np.int64]  # (N,)
    masks: NDArray[np.uint8]  # (N, ceil(H * W / 8)), foreground bits, row-major as np.packbits writes them
    usable: NDArray[np.bool_]  # (N,), False where the mask is degenerate


_Side = Annotated[int, Field(ge=1, le=2**16)]
_Share = Annotated[float, Field(ge=0, le=1)]


class _Open(Config):
    model_config = ConfigDict(extra="ignore")


class _SplitEntry(_Open):
    count: Annotated[int, Field(ge=0)]


class _FileEntry(_Open):
    bytes: int
    sha256: str


class _Manifest(_Open):
    """What training needs of a manifest; the rest tells where the store came from."""

    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    image_size: tuple[_Side, _Side]
    channel_mean: tuple[_Share, _Share, _Share]
    channel_std: tuple[_Share, _Share, _Share]
    splits: dict[Literal["train", "test"], _SplitEntry]
    files: dict[str, _FileEntry]


class PreparedStore:
    """Reader of a store folder; `open` checks that it is whole, `verify` that not one byte changed."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        about = validate(_Manifest, manifest, f"{path / MANIFEST}: prepare the store again")
        self.classes = about.classes
        self.image_size = about.image_size
        self.channel_mean = about.channel_mean  # of the training images, 0..1
        self.channel_std = about.channel_std
        self._counts = {name: entry.count for name, entry in about.splits.items()}
        self._files = about.files
        hashes = {name: entry.sha256 for name, entry in about.files.items()}
        # Equal stores have equal hashes, wherever and whenever they were made.
        self.content_hash: str = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()

    @classmethod
    def open(cls, path: Path) -> "PreparedStore":
        """Store at `path`. Raises PsysError if it is missing, foreign, or its files are not as its manifest says."""
        try:
            manifest = json.loads(read_bounded(path / MANIFEST, MANIFEST_BYTES))
        except FileNotFoundError:
            raise PsysError(f"no prepared store at {path} (no {MANIFEST}): make one with `psys prepare`") from None
        except (OSError, ValueError, RecursionError) as error:
            raise PsysError(f"cannot read {path / MANIFEST} ({error}): prepare the store again with --force") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise PsysError(f"{path / MANIFEST} does not describe a prepared store (format '{FORMAT}')")
        if manifest.get("version") != VERSION:
            raise PsysError(f"{path} has store version {manifest.get('version')}, expected {VERSION}: prepare it again")
        store = cls(path, manifest)
        store._check_files()
        for split, count in store._counts.items():
            store._check_rows(split, count)
        return store

    def split(self, name: str) -> Split:
        """Arrays of "train" or "test". Raises PsysError for a split this store does not have."""
        if name not in self._counts:
            raise PsysError(f"{self.path} has no split '{name}' (it has: {', '.join(self._counts)})")
        return Split(*(self._array(name, column) for column in Split._fields))

    def shares(self, name: str) -> NDArray[np.float32]:
        """Foreground share of each mask of a split, (N,), 0..1."""
        return self._array(name, "quality")

    def verify(self) -> None:
        """Hash every file. Raises PsysError naming the first that is not what was written."""
        for name, entry in self._files.items():
            if _sha256(self.path / name) != entry.sha256:
                raise PsysError(f"{self.path / name} was changed after it was written: prepare the store again")

    def _array(self, split: str, column: str) -> NDArray[Any]:
        path = self.path / f"{split}_{column}.npy"
        try:
            return open_memmap(path, mode="r")
        except Exception as error:  # a damaged header can raise almost anything
            raise PsysError(f"cannot read {path} ({error}): prepare the store again") from None

    def _check_files(self) -> None:
        expected = {f"{split}_{column}.npy" for split in self._counts for column in _columns(self.image_size)}
        if odd := expected ^ set(self._files):
            raise PsysError(f"{self.path / MANIFEST} must list the columns of each split; wrong: {sorted(odd)!s:.200}")
        for name, entry in self._files.items():
            found = (self.path / name).stat().st_size if (self.path / name).is_file() else "no file"
            if found != entry.bytes:
                raise PsysError(
                    f"{self.path / name}: expected {entry.bytes} bytes, found {found}: prepare the store again"
                )

    def _check_rows(self, split: str, count: int) -> None:
        for column, (dtype, row) in _columns(self.image_size).items():
            array = self._array(split, column)
            if array.shape != (count, *row) or array.dtype != dtype:
                raise PsysError(
                    f"{self.path / f'{split}_{column}.npy'}: expected {np.dtype(dtype)} {(count, *row)}, "
                    f"found {array.dtype} {array.shape}: prepare the store again"
                )
        if not set(np.unique(self._array(split, "labels"))) <= set(range(len(self.classes))):
            raise PsysError(f"{self.path / f'{split}_labels.npy'}: a label is none of {len(self.classes)} classes")


class StoreWriter:
    """Writes a store into a folder, rows in order, without holding it in memory; `close` writes the manifest."""

    def __init__(self, folder: Path, splits: Sequence[str], image_size: tuple[int, int]) -> None:
        self._folder = folder
        self._image_size = image_size
        self._files = {
            split: {
                column: _NpyAppender(folder / f"{split}_{column}.npy", dtype, row)
                for column, (dtype, row) in _columns(image_size).items()
            }
            for split in splits
        }
        # Integers: the sums are exact, so mean and deviation do not depend on how the images were batched.
        self._sum = np.zeros(3, np.int64)
        self._sum_of_squares = np.zeros(3, np.int64)

    def append(
        self,
        split: str,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        masks: NDArray[np.bool_],
        shares: NDArray[np.float32],
        usable: NDArray[np.bool_],
    ) -> None:
        """Add B rows: images (B, H, W, 3), labels (B,), masks (B, H, W), foreground shares (B,), usable (B,)."""
        packed = np.packbits(masks.reshape(len(masks), -1), axis=1)
        rows: dict[str, NDArray[Any]] = {
            "images": images,
            "labels": labels,
            "masks": packed,
            "quality": shares,
            "usable": usable,
        }
        for column, values in rows.items():
            self._files[split][column].append(values)
        if split == "train":
            values = images.reshape(-1, 3).astype(np.int64)
            self._sum += values.sum(axis=0)
            self._sum_of_squares += (values**2).sum(axis=0)

    def close(self, classes: Sequence[str], splits: dict[str, Any], **about: Any) -> None:
        """Finish the files and write the manifest: `splits` describes each split, `about` the store as a whole."""
        counts = {split: self._files[split]["labels"].count for split in self._files}
        for columns in self._files.values():
            for file in columns.values():
                file.close()
        height, width = self._image_size
        pixels = counts["train"] * height * width
        mean = self._sum / pixels / 255
        deviation = np.sqrt(np.maximum(self._sum_of_squares / pixels / 255**2 - mean**2, 0))
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **about,
            "classes": list(classes),
            "image_size": [height, width],
            "channel_mean": mean.tolist(),
            "channel_std": deviation.tolist(),
            "splits": {split: {"count": counts[split], **splits[split]} for split in self._files},
            "files": {
                path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
                for path in sorted(self._folder.glob("*.npy"))
            },
        }
        (self._folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


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


def _columns(image_size: tuple[int, int]) -> dict[str, tuple[DTypeLike, tuple[int, ...]]]:
    height, width = image_size
    return {
        "images": (np.uint8, (height, width, 3)),
        "labels": (np.int64, ()),
        "masks": (np.uint8, ((height * width + 7) // 8,)),
        "quality": (np.float32, ()),  # foreground share of the mask, 0..1
        "usable": (np.bool_, ()),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

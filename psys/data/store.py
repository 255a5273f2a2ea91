"""The prepared store: images, labels and foreground masks on disk, memory-mapped during training."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray
from pydantic import ConfigDict, Field

from psys.config import Config, validate
from psys.data.encoded import Decoded, RecordLocation, Size
from psys.errors import PsysError
from psys.files import read_bounded

FORMAT = "psys-store"
VERSION = 2
MANIFEST = "manifest.json"
PREPARED_FROM = "prepared_from"  # manifest key of the `source_location`
RECORDS, INDEX = "records", "index"
MANIFEST_BYTES = 16 * 2**20  # parsed JSON may take 30 times as much memory

# dense: arrays of pixels and mask bits; encoded: records of a JPEG and its mask, decoded to the same arrays on access.
StoreLayout = Literal["dense", "encoded"]


class Split(NamedTuple):
    """Arrays of one split with N images of H x W pixels, memory-mapped or decoded on access."""

    images: NDArray[np.uint8] | Decoded  # (N, H, W, 3), RGB
    labels: NDArray[np.int64]  # (N,)
    masks: NDArray[np.uint8] | Decoded  # (N, ceil(H * W / 8)), foreground bits, row-major as from np.packbits
    usable: NDArray[np.bool_]  # (N,), False if the mask is degenerate


_Side = Annotated[int, Field(ge=1, le=2**16)]
_Share = Annotated[float, Field(ge=0, le=1)]


class _Extensible(Config):
    model_config = ConfigDict(extra="ignore")


class _SplitEntry(_Extensible):
    count: Annotated[int, Field(ge=0)]


class _FileEntry(_Extensible):
    bytes: int
    sha256: str


class _Manifest(_Extensible):
    """The part of a manifest that training reads; the other fields record how the store was made."""

    layout: StoreLayout
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    quality: Annotated[tuple[str, ...], Field(min_length=1)]
    image_size: tuple[_Side, _Side]
    channel_mean: tuple[_Share, _Share, _Share]
    channel_std: tuple[_Share, _Share, _Share]
    splits: dict[Literal["train", "test"], _SplitEntry]
    files: dict[str, _FileEntry]


class PreparedStore:
    """Reader of a store folder; `open` checks that the store is complete, `verify` checks every file's hash."""

    def __init__(self, path: Path, manifest: dict[str, Any], image_size: int | None = None) -> None:
        self.path = path
        self.manifest = manifest
        about = validate(_Manifest, manifest, f"{path / MANIFEST}: prepare the store again")
        self.layout = about.layout
        self.classes = about.classes
        self.quality_names = about.quality
        self.image_size = about.image_size if image_size is None else (image_size, image_size)
        if self.layout == "dense" and self.image_size != about.image_size:
            raise PsysError(
                f"{path} holds images of {about.image_size[0]} x {about.image_size[1]} pixels only: "
                f"prepare another store for {image_size}, or a store with the layout encoded"
            )
        self.channel_mean = about.channel_mean  # of the training images, 0..1
        self.channel_std = about.channel_std
        self._counts = {name: entry.count for name, entry in about.splits.items()}
        self._files = about.files
        hashes = {name: entry.sha256 for name, entry in about.files.items()}
        # Stores with equal files have equal hashes.
        self.content_hash: str = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()

    @classmethod
    def open(cls, path: Path, image_size: int | None = None) -> "PreparedStore":
        """Open the store at `path`; `image_size` overrides the size of decoded images in an encoded store.

        Raises PsysError if the store is missing, has another format, or its files do not match its manifest.
        """
        try:
            manifest = json.loads(read_bounded(path / MANIFEST, MANIFEST_BYTES))
        except FileNotFoundError:
            raise PsysError(
                f"no prepared store at {path} (no {MANIFEST}): name its place with --store, or prepare it"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise PsysError(f"cannot read {path / MANIFEST} ({error}): prepare the store again with --force") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise PsysError(f"{path / MANIFEST} does not describe a prepared store (format '{FORMAT}')")
        if manifest.get("version") != VERSION:
            version = f"{manifest.get('version')!s:.20}"
            raise PsysError(f"{path} has store version {version}, expected {VERSION}: prepare it again")
        store = cls(path, manifest, image_size)
        store._check_files()
        for split, count in store._counts.items():
            store._check_rows(split, count)
        return store

    def split(self, name: str) -> Split:
        """Arrays of "train" or "test". Raises PsysError for a split that the store does not have."""
        if name not in self._counts:
            raise PsysError(f"{self.path} has no split '{name}' (it has: {', '.join(self._counts)})")
        labels, usable = self._array(name, "labels"), self._array(name, "usable")
        if self.layout == "dense":
            return Split(self._array(name, "images"), labels, self._array(name, "masks"), usable)
        index, files = self._array(name, INDEX), [self.path / file for file in self._record_files(name)]
        images, masks = (Decoded(files, index, self.image_size, masks) for masks in (False, True))
        return Split(images, labels, masks, usable)

    def quality(self, name: str) -> NDArray[np.float32]:
        """Quality metrics of each mask of a split, (N, Q), with columns `quality_names`."""
        return self._array(name, "quality")

    def verify(self) -> None:
        """Hash every file. Raises PsysError naming the first file that changed."""
        for name, entry in self._files.items():
            if hash_of(self.path / name) != entry.sha256:
                raise PsysError(f"{self.path / name} was changed after it was written: prepare the store again")

    def _array(self, split: str, column: str) -> NDArray[Any]:
        path = self.path / f"{split}_{column}.npy"
        try:
            return open_memmap(path, mode="r")
        except Exception as error:  # a damaged header can raise almost any exception
            raise PsysError(f"cannot read {path} ({error}): prepare the store again") from None

    def _record_files(self, split: str) -> list[str]:
        return sorted(name for name in self._files if name.startswith(f"{split}_{RECORDS}_"))

    def _columns(self) -> dict[str, tuple[DTypeLike, tuple[int, ...]]]:
        return columns_of(self.layout, self.image_size, len(self.quality_names))

    def _check_files(self) -> None:
        expected = {f"{split}_{column}.npy" for split in self._counts for column in self._columns()}
        if self.layout == "encoded":
            expected |= {
                record_file_name(split, i) for split in self._counts for i, _ in enumerate(self._record_files(split))
            }
        if odd := expected ^ set(self._files):
            raise PsysError(f"{self.path / MANIFEST} must list the columns of each split; wrong: {sorted(odd)!s:.200}")
        for name, entry in self._files.items():
            found = (self.path / name).stat().st_size if (self.path / name).is_file() else "no file"
            if found != entry.bytes:
                raise PsysError(
                    f"{self.path / name}: expected {entry.bytes} bytes, found {found}: prepare the store again"
                )

    def _check_rows(self, split: str, count: int) -> None:
        for column, (dtype, row) in self._columns().items():
            array = self._array(split, column)
            if array.shape != (count, *row) or array.dtype != dtype:
                raise PsysError(
                    f"{self.path / f'{split}_{column}.npy'}: expected {np.dtype(dtype)} {(count, *row)}, "
                    f"found {array.dtype} {array.shape}: prepare the store again"
                )
        labels = self._array(split, "labels")
        if count and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise PsysError(f"{self.path / f'{split}_labels.npy'}: a label is outside its {len(self.classes)} classes")
        if self.layout == "encoded" and count:
            self._check_index(split)

    def _check_index(self, split: str) -> None:
        ends = np.array([self._files[name].bytes for name in self._record_files(split)], np.int64)
        file, *bytes_ = self._array(split, INDEX).T
        valid = bool(len(ends)) and file.min() >= 0 and file.max() < len(ends)
        valid = valid and all(part.min() >= 0 and part.max() < 2**40 for part in bytes_)
        if not valid or (sum(bytes_) > ends[file]).any():
            raise PsysError(
                f"{self.path / f'{split}_{INDEX}.npy'} points outside the record files: prepare the store again"
            )


def record_file_name(split: str, number: int) -> str:
    """Name of the record file `number` of a split in an encoded store."""
    return f"{split}_{RECORDS}_{number:05d}.bin"


def columns_of(layout: StoreLayout, image_size: Size, quality: int) -> dict[str, tuple[DTypeLike, tuple[int, ...]]]:
    """The dtype and the row shape of each column of a split."""
    height, width = image_size
    images: dict[str, tuple[DTypeLike, tuple[int, ...]]] = (
        {"images": (np.uint8, (height, width, 3)), "masks": (np.uint8, ((height * width + 7) // 8,))}
        if layout == "dense"
        else {INDEX: (np.int64, (len(RecordLocation._fields),))}
    )
    return {**images, "labels": (np.int64, ()), "quality": (np.float32, (quality,)), "usable": (np.bool_, ())}


def hash_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

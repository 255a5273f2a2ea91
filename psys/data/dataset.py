"""A labelled set of images as it comes from a source, before anything is prepared."""

import hashlib
import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from pydantic import Field

from psys.config import NAME, Config, validate
from psys.data.folders import new_folder
from psys.data.reference import References
from psys.errors import PsysError
from psys.files import read_bounded

SPLITS = ("train", "test")
FILE = "dataset.json"
FILE_BYTES = 2**16  # of dataset.json
IMAGE_PIXELS = 2**20  # of an image in memory: 50 of them travel to an actor at once


@dataclass(frozen=True)
class DatasetSplit:
    """Images and their labels: pixels in memory (or memory-mapped), or where each encoded image is to be read."""

    images: NDArray[np.uint8] | References  # (N, H, W, 3) RGB, or N of `read_encoded`
    labels: NDArray[np.int64]  # (N,) indices of the dataset's classes

    def fingerprint(self, root: Path) -> str:
        """Hash that changes with the content: of the pixels, or of each file's name under `root`, size and time."""
        if isinstance(self.images, np.ndarray):
            return content_hash(self.images, self.labels)
        hashed = hashlib.sha256()
        for mark, label in zip(self.images.marks(root), self.labels, strict=True):
            hashed.update(f"{mark}\0{label}\n".encode(errors="surrogateescape"))  # a file's name need not be UTF-8
        return hashed.hexdigest()

    def take(self, rows: NDArray[np.int64]) -> "DatasetSplit":
        """The samples at `rows`, in that order."""
        images = self.images[rows] if isinstance(self.images, np.ndarray) else self.images.take(rows)
        return DatasetSplit(images, self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """What every source delivers; `origin` says in words where it came from."""

    name: str
    origin: str
    root: Path  # files of a split stand below it
    classes: tuple[str, ...]
    train: DatasetSplit
    test: DatasetSplit

    @property
    def splits(self) -> dict[str, DatasetSplit]:
        return {"train": self.train, "test": self.test}


class _About(Config):
    """What dataset.json says."""

    name: Annotated[str, Field(pattern=NAME)]
    origin: str
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=256)]  # a label is hashed as a byte


def content_hash(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    """SHA-256 over the sorted SHA-256 of each label byte + image bytes: the same set in any order has the same hash."""
    digests = []
    for image, label in zip(images, labels, strict=True):
        digests.append(hashlib.sha256(bytes([label]) + image.tobytes()).digest())
        if len(digests) % 4096 == 0:
            forget(images)
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def forget(array: NDArray[Any]) -> None:
    """Give back the memory that a memory-mapped array took as it was read; when it is read again, it comes back."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


def write_dataset(dataset: Dataset, folder: Path) -> None:
    """Write an in-memory dataset as .npy files and dataset.json; the folder appears only when it is complete."""
    with new_folder(folder) as partial:
        for name, split in dataset.splits.items():
            np.save(partial / f"{name}_images.npy", np.asarray(split.images), allow_pickle=False)
            np.save(partial / f"{name}_labels.npy", split.labels, allow_pickle=False)
        about = {"name": dataset.name, "origin": dataset.origin, "classes": dataset.classes}
        (partial / FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def read_dataset(folder: Path) -> Dataset:
    """Dataset written by `write_dataset`, memory-mapped. Raises PsysError naming the file that is missing or broken."""
    try:
        about = validate(_About, json.loads(read_bounded(folder / FILE, FILE_BYTES)), FILE)
        splits = {}
        for name in SPLITS:
            images, labels = (open_memmap(folder / f"{name}_{column}.npy", mode="r") for column in ("images", "labels"))
            if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
                raise ValueError(f"{name}: images {images.shape} {images.dtype} do not go with labels {labels.shape}")
            if not 0 < images.shape[1] * images.shape[2] <= IMAGE_PIXELS:
                raise ValueError(f"{name}: images {images.shape} of more than {IMAGE_PIXELS:,} pixels, or of none")
            if labels.dtype != np.int64 or not all(0 <= label < len(about.classes) for label in np.unique(labels)):
                raise ValueError(f"{name}: labels {labels.dtype}, expected int64 below {len(about.classes)}")
            splits[name] = DatasetSplit(images, np.array(labels))
        return Dataset(about.name, about.origin, folder, about.classes, **splits)
    except Exception as error:  # a damaged header can raise almost anything
        raise PsysError(f"{folder} is not a whole dataset ({error}): delete it and fetch it again") from None

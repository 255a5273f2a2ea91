"""A labelled data set as a source provides it, before preparation."""

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
IMAGE_PIXELS = 2**20  # largest image in memory: up to 64 images are sent to an actor at once


@dataclass(frozen=True)
class DatasetSplit:
    """Images and labels of one split; images are pixels, possibly memory-mapped, or references to encoded images."""

    images: NDArray[np.uint8] | References  # (N, H, W, 3) RGB, or N references for `read_encoded`
    labels: NDArray[np.int64]  # (N,) indices into the dataset's classes

    def fingerprint(self, root: Path) -> str:
        """Hash of the content: of the pixels, or of each file's name under `root`, its size and modification time."""
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
    """What every source provides; `origin` describes in words where the images came from."""

    name: str
    origin: str
    root: Path  # the folder that contains all files of the splits
    classes: tuple[str, ...]
    train: DatasetSplit
    test: DatasetSplit

    @property
    def splits(self) -> dict[str, DatasetSplit]:
        return {"train": self.train, "test": self.test}


class _Metadata(Config):
    """The content of dataset.json."""

    name: Annotated[str, Field(pattern=NAME)]
    origin: str
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=256)]  # a label is hashed as a byte


def content_hash(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    """SHA-256 of the sorted SHA-256 of each label byte and image; independent of the images' order."""
    digests = []
    for image, label in zip(images, labels, strict=True):
        digests.append(hashlib.sha256(bytes([label]) + image.tobytes()).digest())
        if len(digests) % 4096 == 0:
            release_memory(images)
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def release_memory(array: NDArray[Any]) -> None:
    """Release the pages that reading a memory-mapped array loaded; reading it again loads them again."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


def write_dataset(dataset: Dataset, folder: Path) -> None:
    """Write an in-memory dataset as .npy files and dataset.json; the folder is created only when complete."""
    with new_folder(folder) as partial:
        for name, split in dataset.splits.items():
            np.save(partial / f"{name}_images.npy", np.asarray(split.images), allow_pickle=False)
            np.save(partial / f"{name}_labels.npy", split.labels, allow_pickle=False)
        about = {"name": dataset.name, "origin": dataset.origin, "classes": dataset.classes}
        (partial / FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def read_dataset(folder: Path) -> Dataset:
    """Open a dataset written by `write_dataset`, memory-mapped. Raises PsysError if a file is missing or damaged."""
    try:
        about = validate(_Metadata, json.loads(read_bounded(folder / FILE, FILE_BYTES)), FILE)
        splits = {}
        for name in SPLITS:
            images, labels = (open_memmap(folder / f"{name}_{column}.npy", mode="r") for column in ("images", "labels"))
            if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
                raise ValueError(f"{name}: images {images.shape} {images.dtype} do not match labels {labels.shape}")
            if not 0 < images.shape[1] * images.shape[2] <= IMAGE_PIXELS:
                raise ValueError(f"{name}: images {images.shape}, expected 1 to {IMAGE_PIXELS:,} pixels each")
            if labels.dtype != np.int64 or not all(0 <= label < len(about.classes) for label in np.unique(labels)):
                raise ValueError(f"{name}: labels {labels.dtype}, expected int64 below {len(about.classes)}")
            splits[name] = DatasetSplit(images, np.array(labels))
        return Dataset(about.name, about.origin, folder, about.classes, **splits)
    except Exception as error:  # a damaged header can raise almost any exception
        raise PsysError(f"{folder} is not a complete dataset ({error}): delete it and fetch it again") from None

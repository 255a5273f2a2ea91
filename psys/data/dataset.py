"""A labelled set of images as it comes from a source, before anything is prepared."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from psys.data.folders import new_folder
from psys.errors import PsysError

SPLITS = ("train", "test")
FILE = "dataset.json"


@dataclass(frozen=True)
class DatasetSplit:
    """Images and their labels: pixels in memory (or memory-mapped), or the files that hold them."""

    images: NDArray[np.uint8] | tuple[Path, ...]  # (N, H, W, 3) RGB, or N paths
    labels: NDArray[np.int64]  # (N,) indices of the dataset's classes

    def fingerprint(self, root: Path) -> str:
        """Hash that changes with the content: of the pixels, or of each file's name under `root`, size and time."""
        if isinstance(self.images, np.ndarray):
            return content_hash(self.images, self.labels)
        return _hash_of_all(
            f"{path.relative_to(root)}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}\0{label}".encode()
            for path, label in zip(self.images, self.labels, strict=True)
        )


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


def content_hash(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    """SHA-256 over the sorted SHA-256 of each label byte + image bytes: the same set in any order has the same hash."""
    return _hash_of_all(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))


def _hash_of_all(items: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(item).digest() for item in items))).hexdigest()


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
        about = json.loads((folder / FILE).read_text(encoding="utf-8"))
        splits = {}
        for name in SPLITS:
            images = np.load(folder / f"{name}_images.npy", mmap_mode="r", allow_pickle=False)
            labels = np.load(folder / f"{name}_labels.npy", allow_pickle=False)
            if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
                raise ValueError(f"{name}: images {images.shape} {images.dtype} do not go with labels {labels.shape}")
            splits[name] = DatasetSplit(images, labels)
        return Dataset(about["name"], about["origin"], folder, tuple(about["classes"]), **splits)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise PsysError(f"{folder} is not a whole dataset ({error}): delete it and fetch it again") from None

"""CIFAR-10 as published: the "python" and the "binary" format, as an archive or a folder."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from psys.data.archive import is_archive, read_archive, read_folder
from psys.data.dataset import Dataset, DatasetSplit
from psys.data.pickled import as_integers, as_pixels, read_pickled
from psys.errors import PsysError

NAME = "cifar10"
ORIGIN = "CIFAR-10 (A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009)"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")

PIXELS = 3 * 32 * 32
RECORD = 1 + PIXELS  # binary format: the label byte, then the red, green and blue planes
BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_FILES = {stem + suffix for stems in BATCHES.values() for stem in stems for suffix in ("", ".bin")}


def holds_cifar(path: Path) -> bool:
    """True for a tar archive, for a folder of CIFAR-10 batches and for a folder that contains such a folder."""
    if path.is_file():
        return is_archive(path)
    return any((folder / name).is_file() for folder in _folders(path) for name in _FILES)


def read_cifar(path: Path) -> Dataset:
    """Read CIFAR-10 from the archive or folder `path`. Raises PsysError naming a missing or damaged file."""
    members = _archived(path) if path.is_file() else _in_folder(path)
    suffix = ".bin" if any(name in members for name in _FILES if name.endswith(".bin")) else ""
    batches = {}
    for stem in (stem for stems in BATCHES.values() for stem in stems):
        if stem + suffix not in members:
            raise PsysError(f"{path} has no {stem + suffix}: CIFAR-10 has data_batch_1 to data_batch_5 and test_batch")
        read = _read_binary if suffix else _read_python
        batches[stem] = read(members[stem + suffix], f"{path} ({stem + suffix})")
    most = max(len(labels) for _, labels in batches.values())
    for stem, (_, labels) in batches.items():
        if len(labels) != most:
            raise PsysError(
                f"{path} ({stem + suffix}) has {len(labels)} images, other batches have {most}: the file is truncated"
            )
    splits = {
        split: DatasetSplit(*(np.concatenate(parts) for parts in zip(*(batches[stem] for stem in stems), strict=True)))
        for split, stems in BATCHES.items()
    }
    return Dataset(NAME, ORIGIN, path, CLASSES, **splits)


def _folders(path: Path) -> list[Path]:
    return [path, *(path / name for name in FOLDERS)]


def _in_folder(path: Path) -> dict[str, bytes]:
    folder = next(folder for folder in _folders(path) if any((folder / name).is_file() for name in _FILES))
    return read_folder(folder, _FILES)


def _archived(path: Path) -> dict[str, bytes]:
    return {name.rpartition("/")[2]: data for name, data in read_archive(path).items()}


def _read_binary(data: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if not data or len(data) % RECORD:
        raise PsysError(f"{where} has {len(data)} bytes, expected a multiple of {RECORD}: the file is truncated")
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    return _checked(records[:, 1:], records[:, 0].astype(np.int64), where)


def _read_python(data: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        batch = read_pickled(data)
        pixels, labels = as_pixels(batch[b"data"]), as_integers(batch[b"labels"])
    except Exception as error:  # a damaged pickle can raise almost any exception
        raise PsysError(f"{where} is not a complete CIFAR-10 batch ({type(error).__name__}: {error})") from None
    return _checked(pixels, labels, where)


def _checked(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64], where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if pixels.shape != (len(labels), PIXELS):
        raise PsysError(f"{where} holds pixels {pixels.shape} and {len(labels)} labels, expected pixels (N, {PIXELS})")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(CLASSES):
        raise PsysError(f"{where} has no images or labels outside 0..{len(CLASSES) - 1}")
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels

"""CIFAR-10 as its authors publish it: the "python" and the "binary" layout, as an archive or as a folder."""

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psys.data.dataset import Dataset, DatasetSplit
from psys.errors import PsysError

NAME = "cifar10"
ORIGIN = "CIFAR-10 (A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009)"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")

PIXELS = 3 * 32 * 32
RECORD = 1 + PIXELS  # binary layout: the label byte, then red, green, blue planes
MEMBER_LIMIT = 64 * 2**20  # a real batch has 31 MB
BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_FILES = {stem + suffix for stems in BATCHES.values() for stem in stems for suffix in ("", ".bin")}


def holds_cifar(path: Path) -> bool:
    """True for a tar archive and for a folder with CIFAR-10 batches, in either layout, or with their usual folder."""
    if path.is_file():
        return tarfile.is_tarfile(path)
    return any((folder / name).is_file() for folder in _folders(path) for name in _FILES)


def read_cifar(path: Path) -> Dataset:
    """CIFAR-10 from the archive or folder at `path`. Raises PsysError naming the file that is missing or not whole."""
    members = dict(_tar_members(path) if path.is_file() else _folder_members(path))
    suffix = ".bin" if any(name.endswith(".bin") for name in members) else ""
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
                f"{path} ({stem + suffix}) has {len(labels)} images, other batches have {most}: it is cut short"
            )
    splits = {
        split: DatasetSplit(*(np.concatenate(parts) for parts in zip(*(batches[stem] for stem in stems), strict=True)))
        for split, stems in BATCHES.items()
    }
    return Dataset(NAME, ORIGIN, path, CLASSES, **splits)


def _folders(path: Path) -> list[Path]:
    return [path, *(path / name for name in FOLDERS)]


def _folder_members(path: Path) -> Iterator[tuple[str, bytes]]:
    folder = next(folder for folder in _folders(path) if any((folder / name).is_file() for name in _FILES))
    for name in _FILES:
        if (folder / name).is_file():
            yield name, (folder / name).read_bytes()


def _tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name not in _FILES or not member.isfile():
                    continue
                if member.size > MEMBER_LIMIT:
                    raise PsysError(f"{path} ({name}) has {member.size} bytes, a CIFAR-10 batch has 31 MB")
                file = archive.extractfile(member)
                assert file is not None, "a regular member has content"
                yield name, file.read()
            # Only at its end does a compressed file tell whether its checksum is right.
            while archive.fileobj is not None and archive.fileobj.read(2**20):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise PsysError(f"{path} is not a whole tar archive ({error}): fetch or copy it again") from None


def _read_binary(data: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if not data or len(data) % RECORD:
        raise PsysError(f"{where} has {len(data)} bytes, expected a multiple of {RECORD}: the file is cut short")
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    return _checked(records[:, 1:], records[:, 0].astype(np.int64), where)


def _read_python(data: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        batch: Any = _CifarUnpickler(io.BytesIO(data), encoding="bytes").load()
        pixels, labels = np.asarray(batch[b"data"]), np.array(batch[b"labels"], np.int64)
    except PsysError as error:
        raise PsysError(f"{where} {error}") from None
    except Exception as error:  # a damaged pickle can raise almost anything
        raise PsysError(f"{where} is not a whole CIFAR-10 batch ({type(error).__name__}: {error})") from None
    return _checked(pixels, labels, where)


def _checked(
    pixels: NDArray[Any], labels: NDArray[np.int64], where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != PIXELS or labels.shape != pixels.shape[:1]:
        raise PsysError(
            f"{where} holds pixels {pixels.dtype} {pixels.shape} and labels {labels.shape}, "
            f"expected uint8 (N, {PIXELS}) and (N,)"
        )
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(CLASSES):
        raise PsysError(f"{where} has no images or labels outside 0..{len(CLASSES) - 1}")
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


class _CifarUnpickler(pickle.Unpickler):
    """Admits the four names by which numpy arrays and bytes are spelt; a pickle that names anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                return np.zeros(0).__reduce__()[0]
            case "numpy", "ndarray" | "dtype":
                return getattr(np, name)
            case "_codecs", "encode":  # bytes, as Python 3 writes them in an old protocol
                return lambda text, encoding: text.encode("latin1")
        raise PsysError(f"asks for {module}.{name}, which no CIFAR-10 batch needs: it is not opened")

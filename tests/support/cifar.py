"""Small CIFAR-10 files in both published formats, made from images of the sample."""

import pickle
import pickletools
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from psys.data.dataset import Dataset

BATCHES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
PER_BATCH = 10


def _planes(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def pickled_by_python_2(batch: object) -> bytes:
    """Pickle a batch like the published ones: by Python 2, whose strings are bytes, with numpy's old module name."""
    data = pickle.dumps(batch, protocol=3)
    data = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    string = {"SHORT_BINBYTES": b"U", "BINBYTES": b"T"}
    edited = bytearray(data)
    for opcode, _, position in pickletools.genops(data):
        if opcode.name in string and position is not None:
            edited[position : position + 1] = string[opcode.name]
    edited[1] = 2
    return bytes(edited)


def python_batch(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
    return pickled_by_python_2({b"batch_label": b"b", b"labels": labels.tolist(), b"data": _planes(images)})


def binary_batch(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
    return np.concatenate([labels[:, None].astype(np.uint8), _planes(images)], axis=1).tobytes()


def pack(folder: Path, archive: Path) -> Path:
    """Write a .tar.gz of the folder, like the published archives."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return archive


def check_dataset(dataset: Dataset) -> None:
    """Assert that every split has images of CIFAR-10's shape and valid labels."""
    for split in dataset.splits.values():
        assert np.asarray(split.images).shape == (len(split.labels), 32, 32, 3)
        assert 0 <= split.labels.min() <= split.labels.max() < 10

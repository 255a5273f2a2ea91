"""Small CIFAR-10 files in both published layouts, made from real images of the sample."""

import pickle
import pickletools
import tarfile
from pathlib import Path

import numpy as np

BATCHES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
PER_BATCH = 10


def _planes(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def as_python_2_would(batch: dict[bytes, object]) -> bytes:
    """The published batches are pickles of Python 2: its strings are bytes, and numpy had another module."""
    data = pickle.dumps(batch, protocol=3)
    data = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    string = {"SHORT_BINBYTES": b"U", "BINBYTES": b"T"}
    edited = bytearray(data)
    for opcode, _, position in pickletools.genops(data):
        if opcode.name in string:
            edited[position : position + 1] = string[opcode.name]
    edited[1] = 2
    return bytes(edited)


def python_batch(images, labels) -> bytes:
    return as_python_2_would({b"batch_label": b"b", b"labels": labels.tolist(), b"data": _planes(images)})


def binary_batch(images, labels) -> bytes:
    return np.concatenate([labels[:, None].astype(np.uint8), _planes(images)], axis=1).tobytes()


def pack(folder: Path, archive: Path) -> Path:
    """A .tar.gz of the folder, as the published archives are."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return archive

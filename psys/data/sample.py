"""The embedded sample: 2,000 training and 500 test images of CIFAR-10 in the package, as two contact sheets."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from psys.data.dataset import SPLITS, Dataset, DatasetSplit, content_hash
from psys.data.image import decode_bounded
from psys.errors import PsysError

FOLDER = Path(__file__).parent / "sample"
TILE = 32


def read_sample(folder: Path = FOLDER) -> Dataset:
    """Read the sample and verify the hashes in its labels.json. Raises PsysError if the sample is damaged."""
    try:
        about: dict[str, Any] = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        splits = {split: _read_split(folder / f"{split}.png", about[split]) for split in SPLITS}
        return Dataset("sample", about["origin"], folder, tuple(about["classes"]), **splits)
    except Exception as error:  # values of a wrong type can raise almost any exception
        raise PsysError(f"the embedded sample in {folder} is damaged ({error}): install psys again") from None


def _read_split(sheet: Path, about: dict[str, Any]) -> DatasetSplit:
    pixels = decode_bounded(sheet.read_bytes(), cv2.IMREAD_COLOR)
    labels = np.array(about["labels"], np.int64)
    images = _tiles(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False))
    if len(images) != len(labels) or content_hash(images, labels) != about["content_hash"]:
        raise ValueError(f"{sheet.name} does not match the hash in labels.json")
    return DatasetSplit(images, labels)


def _tiles(sheet: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows, columns = sheet.shape[0] // TILE, sheet.shape[1] // TILE
    grid = sheet[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE, 3)
    return np.ascontiguousarray(grid.swapaxes(1, 2).reshape(-1, TILE, TILE, 3))

"""The training images where the steps need them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Rows:
    """Rows of a split's columns on a device: on a GPU all of them are copied there once, else they stay on disk.

    `columns`: arrays of N rows each, memory-mapped.
    """

    def __init__(self, columns: Sequence[NDArray[Any]], device: torch.device) -> None:
        self._columns, self._device = columns, device
        # Copied, for torch takes no view of a read-only memory map.
        self._resident = [torch.from_numpy(np.array(c)).to(device) for c in columns] if device.type == "cuda" else []

    def __getitem__(self, indices: NDArray[np.int64]) -> list[Tensor]:
        """Of each column the rows at `indices` (B,), in that order: (B, ...) on the device."""
        if self._resident:
            chosen = torch.from_numpy(indices).to(self._device)
            return [column[chosen] for column in self._resident]
        return [torch.from_numpy(column[indices]) for column in self._columns]

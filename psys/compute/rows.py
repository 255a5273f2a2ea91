"""The training images where the steps need them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from psys.data.encoded import Decoded


class Rows:
    """Rows of a split's columns on a device: on a GPU arrays are copied there once, else they stay on disk.

    `columns`: of N rows each, memory-mapped arrays, or what decodes rows (see `Decoded`).
    """

    def __init__(self, columns: Sequence[NDArray[Any] | Decoded], device: torch.device) -> None:
        self._columns, self._device = columns, device
        self.decoded = any(isinstance(column, Decoded) for column in columns)
        # Copied, for torch takes no view of a read-only memory map.
        on_device = device.type == "cuda" and not self.decoded
        self._resident = [torch.from_numpy(np.array(column)).to(device) for column in columns] if on_device else []

    def __getitem__(self, indices: NDArray[np.int64]) -> list[Tensor]:
        """Of each column the rows at `indices` (B,), in that order: (B, ...) on the device."""
        if self._resident:
            chosen = torch.from_numpy(indices).to(self._device)
            return [column[chosen] for column in self._resident]
        return [torch.from_numpy(column[indices]).to(self._device) for column in self._columns]

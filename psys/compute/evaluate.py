"""Loss and accuracy of a model on plain images, without augmentation."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from psys.augment.batch import normalise
from psys.data.encoded import Decoded


class Evaluation(NamedTuple):
    """Mean cross-entropy and share of right answers over `images` images."""

    loss: float
    accuracy: float
    images: int


@torch.inference_mode()
def evaluate(
    module: nn.Module,
    images: NDArray[np.uint8] | Decoded,
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: torch.device,
    most_pixels: int = 2**19,
) -> Evaluation:
    """Evaluate in float32 with running statistics on the images at `rows` (R,), R >= 1, `most_pixels` at a time.

    images: (N, H, W, 3) uint8; labels: (N,) int64.
    """
    module.eval()
    loss = correct = 0.0
    batch_size = max(1, most_pixels // (images.shape[1] * images.shape[2]))
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        batch, targets = (torch.from_numpy(column[some]).to(device) for column in (images, labels))
        logits = module(normalise(batch, mean, std))
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
        correct += (logits.argmax(1) == targets).sum().item()
    return Evaluation(loss / len(rows), correct / len(rows), len(rows))

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
    """Mean cross-entropy and predictions over some images."""

    loss: float
    confusion: NDArray[np.int64]
    """(classes, classes): images by true class (row) and predicted class (column)"""
    right: NDArray[np.bool_]
    """(images,): whether the prediction of each image is right, in the order of the images"""

    @property
    def images(self) -> int:
        """Images evaluated."""
        return len(self.right)

    @property
    def accuracy(self) -> float:
        """Share of right predictions, 0 to 1."""
        return float(self.right.mean())


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
    loss, confusion, right = 0.0, np.zeros(1, np.int64), np.zeros(len(rows), np.bool_)
    batch_size = max(1, most_pixels // (images.shape[1] * images.shape[2]))
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        batch, targets = (torch.from_numpy(column[some]).to(device) for column in (images, labels))
        logits = module(normalise(batch, mean, std))
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
        classes, predicted = logits.shape[1], logits.argmax(1)
        right[start : start + batch_size] = (predicted == targets).cpu().numpy()
        pairs = targets * classes + predicted
        confusion = confusion + pairs.bincount(minlength=classes * classes).cpu().numpy()
    return Evaluation(loss / len(rows), confusion.reshape(classes, classes), right)

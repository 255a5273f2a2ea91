"""Loss and accuracy of a model on plain images, without augmentation."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from psys.augment.batch import normalise


class Evaluation(NamedTuple):
    """Mean cross-entropy and share of right answers over `images` images."""

    loss: float
    accuracy: float
    images: int


@torch.inference_mode()
def evaluate(
    module: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: torch.device,
    batch_size: int = 500,
) -> Evaluation:
    """Evaluate in float32 with running statistics. images: (N, H, W, 3) uint8; labels: (N,) int64; N >= 1."""
    module.eval()
    loss = correct = 0.0
    for start in range(0, len(labels), batch_size):
        # Copied, for torch takes no view of a read-only memory map.
        batch = torch.from_numpy(np.array(images[start : start + batch_size])).to(device)
        targets = torch.from_numpy(np.array(labels[start : start + batch_size])).to(device)
        logits = module(normalise(batch, mean, std))
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
        correct += (logits.argmax(1) == targets).sum().item()
    return Evaluation(loss / len(labels), correct / len(labels), len(labels))

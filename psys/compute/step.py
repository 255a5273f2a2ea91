"""One gradient: forward, loss and backward on a batch of views."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from psys.compute.flat import FlatModel


class StepResult(NamedTuple):
    """What a gradient step saw, over the views of its batch."""

    loss: float  # mean cross-entropy, without label smoothing: it compares with that of validation
    correct: int
    views: int


def gradient_step(
    model: FlatModel, views: Tensor, labels: Tensor, precision: torch.dtype, label_smoothing: float = 0.0
) -> StepResult:
    """Leave the mean gradient of the batch in `model.gradient` and its batch statistics in `model.statistics`.

    views: (V, 3, H, W) float32, normalised; labels: (V,) int64. The loss is the mean over views (Hoffer et al. 2020).
    """
    model.module.train()
    model.gradient.zero_()
    with torch.autocast(views.device.type, dtype=precision, enabled=precision != torch.float32):
        logits = model.module(views)
    logits = logits.float()
    F.cross_entropy(logits, labels, label_smoothing=label_smoothing).backward()
    logits = logits.detach()
    correct = (logits.argmax(1) == labels).sum()
    return StepResult(F.cross_entropy(logits, labels).item(), int(correct.item()), len(labels))

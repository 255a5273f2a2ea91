"""Weights of the classes in the loss, for data sets whose classes differ in size."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from psys.errors import PsysError


def class_weights(setting: str, labels: NDArray[np.int64], classes: int) -> Tensor | None:
    """Weights (classes,) float32 as `setting` says: none (None is returned), balanced, or numbers with commas between.

    `labels`: (N,) int64 of the training images. Balanced weights are N / (K * N_c) for a class of N_c images, where K
    classes have images (King & Zeng, "Logistic Regression in Rare Events Data", 2001): the mean weight of an image is
    1. The weight of a class without images is 0. Raises PsysError if there are not as many numbers as classes.
    """
    if setting == "none":
        return None
    if setting == "balanced":
        counts = np.bincount(labels, minlength=classes)
        balanced = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)) * (counts > 0)
        return torch.from_numpy(balanced).float()
    weights = [float(number) for number in setting.split(",")]
    if len(weights) != classes:
        raise PsysError(f"--class-weights has {len(weights)} weights, and the store has {classes} classes")
    return torch.tensor(weights)

"""Hold out training images for validation, so that no snapshot is selected on test images."""

import numpy as np
from numpy.typing import NDArray

from psys.errors import PsysError


def holdout(labels: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split sample indices into (training, validation), both sorted int64, with the same `share` of every class.

    labels: (N,) int64. The split is a function of labels, share and seed, so all processes compute the same split.
    Raises PsysError if no training image remains.
    """
    generator = np.random.default_rng(seed)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.unique(labels, return_counts=True)[1])[:-1])
    held = [generator.permutation(members)[: round(share * len(members))] for members in by_class]
    validation = np.sort(np.concatenate(held))
    training = np.setdiff1d(np.arange(len(labels)), validation)
    if not len(training):
        raise PsysError(f"holding out {share:g} of {len(labels)} images leaves none to train on: hold out fewer")
    return training, validation

"""Training images set aside to choose the best snapshot, so that the test images choose nothing."""

import numpy as np
from numpy.typing import NDArray

from psys.errors import PsysError


def holdout(labels: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split sample indices into (training, validation), the same `share` of every class; both sorted int64.

    labels: (N,) int64. The split depends on labels, share and seed alone, so every process makes the same one.
    Raises PsysError when nothing would be left to train on.
    """
    generator = np.random.default_rng(seed)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.unique(labels, return_counts=True)[1])[:-1])
    held = [generator.permutation(members)[: round(share * len(members))] for members in by_class]
    validation = np.sort(np.concatenate(held))
    training = np.setdiff1d(np.arange(len(labels)), validation)
    if not len(training):
        raise PsysError(f"holding out {share:g} of {len(labels)} images leaves none to train on: hold out fewer")
    return training, validation

"""GrabCut's graph cut (Rother, Kolmogorov, Blake 2004) with a smoothness that fits the size of the image.

OpenCV weighs the length of an outline with a fixed constant against a data term that grows with the area. That constant
fits photographs; in a small image outlines cost too much, and objects shrink or vanish. Dividing the covariances of the
colour models by a `contrast` multiplies what a pixel says about its side by as much, which is the same as a lighter
outline and costs nothing, where enlarging the image would cost its square.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

FULL_SIZE = 256  # pixels of the shorter side from which on OpenCV's own weight is right
_COVARIANCES = 20  # where they begin in a model: 5 weights, 5 means of 3, 5 covariances of 9


def contrast_for(shape: tuple[int, ...]) -> float:
    """The contrast for an image of this shape (H, W, ...): as much as its shorter side is short of a photograph's."""
    return max(1.0, FULL_SIZE / min(shape[:2]))


def cut(image: NDArray[np.uint8], trimap: NDArray[np.uint8], contrast: float, iterations: int = 1) -> NDArray[np.bool_]:
    """The foreground (H, W) that GrabCut finds in `image` (H, W, 3) from a trimap of OpenCV's four labels (H, W).

    Each iteration learns the colours of both sides anew and cuts once; a side without pixels ends it.
    """
    labels = trimap.copy()
    cv2.setRNGSeed(0)
    for _ in range(iterations):
        foreground = labels & 1
        if not foreground.any() or foreground.all():
            break
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(image, labels, (0, 0, 0, 0), *models, 0, cv2.GC_INIT_WITH_MASK)  # no iteration: it only learns
        for model in models:
            model[:, _COVARIANCES:] /= contrast
        cv2.grabCut(image, labels, (0, 0, 0, 0), *models, 1, cv2.GC_EVAL_FREEZE_MODEL)
    return np.asarray(labels & 1, np.bool_)


def trimap_of(probable: NDArray[np.bool_], frame: int) -> NDArray[np.uint8]:
    """Probable foreground as given, probable background elsewhere, sure background in a frame of that many pixels."""
    labels = np.where(probable, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    return np.pad(labels[frame:-frame, frame:-frame], frame, constant_values=cv2.GC_BGD)


def cut_plainly(image: NDArray[np.uint8], trimap: NDArray[np.uint8], iterations: int) -> NDArray[np.bool_]:
    """The same by OpenCV's own loop, with its own weight of outlines."""
    labels, models = trimap.copy(), (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.setRNGSeed(0)
    cv2.grabCut(image, labels, (0, 0, 0, 0), *models, iterations, cv2.GC_INIT_WITH_MASK)
    return np.asarray(labels & 1, np.bool_)


def rectangle(shape: tuple[int, ...], margin: float) -> NDArray[np.uint8]:
    """Probable foreground, but sure background in a margin given in units of the sides (H, W, ...)."""
    labels = np.zeros(shape[:2], np.uint8)
    top, left = (max(1, round(margin * side)) for side in shape[:2])
    labels[top:-top, left:-left] = cv2.GC_PR_FGD
    return labels

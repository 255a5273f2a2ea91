"""GrabCut (Rother, Kolmogorov, Blake 2004) with a smoothness term that is adapted to the image's size.

OpenCV weights the smoothness term, which grows with the length of the outline, by a constant chosen for photographs. In
a small image this weight is too large compared with the data term, which grows with the area, and objects shrink or
disappear. Dividing the covariances of the colour models by a `contrast` multiplies the data term by the contrast, which
is equivalent to a smaller smoothness weight. It costs nothing; enlarging the image would cost the square of the factor.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

FULL_SIZE = 256  # shorter side, in pixels, from which OpenCV's smoothness weight is adequate
_COVARIANCES = 20  # their offset in a model: 5 weights, 5 means of 3 values, 5 covariances of 9 values


def contrast_for(shape: tuple[int, ...]) -> float:
    """The contrast for an image of this shape (H, W, ...): `FULL_SIZE` by its shorter side, but at least 1."""
    return max(1.0, FULL_SIZE / min(shape[:2]))


def cut(image: NDArray[np.uint8], trimap: NDArray[np.uint8], contrast: float, iterations: int = 1) -> NDArray[np.bool_]:
    """Foreground (H, W) of `image` (H, W, 3) by GrabCut from a trimap (H, W) of OpenCV's four labels.

    Each iteration fits the colour models of foreground and background and cuts once. The iterations stop early when the
    foreground or the background is empty.
    """
    labels = trimap.copy()
    cv2.setRNGSeed(0)
    for _ in range(iterations):
        foreground = labels & 1
        if not foreground.any() or foreground.all():
            break
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(image, labels, (0, 0, 0, 0), *models, 0, cv2.GC_INIT_WITH_MASK)  # 0 iterations: only fit the models
        for model in models:
            model[:, _COVARIANCES:] /= contrast
        cv2.grabCut(image, labels, (0, 0, 0, 0), *models, 1, cv2.GC_EVAL_FREEZE_MODEL)
    return np.asarray(labels & 1, np.bool_)


def trimap_of(probable: NDArray[np.bool_], frame: int) -> NDArray[np.uint8]:
    """A trimap: probable foreground as given, probable background elsewhere, background in a frame."""
    labels = np.where(probable, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    return np.pad(labels[frame:-frame, frame:-frame], frame, constant_values=cv2.GC_BGD)


def cut_with_opencv(image: NDArray[np.uint8], trimap: NDArray[np.uint8], iterations: int) -> NDArray[np.bool_]:
    """Foreground (H, W) as from `cut`, but with OpenCV's own iterations and smoothness weight."""
    labels, models = trimap.copy(), (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.setRNGSeed(0)
    cv2.grabCut(image, labels, (0, 0, 0, 0), *models, iterations, cv2.GC_INIT_WITH_MASK)
    return np.asarray(labels & 1, np.bool_)


def rectangle(shape: tuple[int, ...], margin: float) -> NDArray[np.uint8]:
    """A trimap (H, W): probable foreground, with background in a margin given as a share of each side."""
    labels = np.zeros(shape[:2], np.uint8)
    top, left = (max(1, round(margin * side)) for side in shape[:2])
    labels[top:-top, left:-left] = cv2.GC_PR_FGD
    return labels

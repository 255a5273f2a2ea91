"""Compare the probabilities of an exported file with those of the network it was exported from."""

import os
from pathlib import Path
from typing import NamedTuple

# ONNX Runtime 1.29 and newer send usage data to Microsoft, and write an identifier below ~/.cache, if this is not set
# before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from psys.augment.batch import Colour
from psys.errors import PsysError
from psys.onnx.export import PixelClassifier

TOLERANCE = 1e-4
"""Largest accepted difference between torch and ONNX Runtime in one probability."""
_SINGLES = 8
_BATCH = 256


class Parity(NamedTuple):
    """Difference between ONNX Runtime and torch."""

    images: int
    max_difference: float  # in one probability, over all images and classes
    agreement: float  # share of the images with the same most probable class, 0 to 1


def check(model_path: Path, model: nn.Module, images: Tensor, mean: Colour, std: Colour) -> Parity:
    """Compare the file's probabilities with those of `model` on batches and on the first images one by one.

    images: (N, H, W, 3) uint8, N >= 1; mean, std: as passed to `export`. `model` is not changed.
    Raises PsysError if the file cannot be loaded or a probability differs by more than TOLERANCE.
    """
    try:
        session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise PsysError(f"ONNX Runtime cannot load {model_path}: {' '.join(str(error).split())}") from None

    def infer(batch: Tensor) -> NDArray[np.float32]:
        (probabilities,) = session.run(["probabilities"], {"images": batch.numpy()})
        return np.asarray(probabilities)

    images = images.cpu()
    classifier = PixelClassifier(model, mean, std)
    with torch.inference_mode():
        expected = torch.cat([classifier(batch) for batch in images.split(_BATCH)]).numpy()
    batches = np.concatenate([infer(batch) for batch in images.split(_BATCH)])
    singles = np.concatenate([infer(image) for image in images[:_SINGLES].split(1)])
    difference = max(abs(batches - expected).max(), abs(singles - expected[:_SINGLES]).max())
    parity = Parity(len(images), float(difference), float((batches.argmax(1) == expected.argmax(1)).mean()))
    if not parity.max_difference <= TOLERANCE:  # written this way, NaN fails as well
        raise PsysError(
            f"{model_path} differs from the network it was exported from: probabilities differ by up to "
            f"{parity.max_difference:.2g} on {parity.images} images (tolerance {TOLERANCE:g})"
        )
    return parity

"""The network of a run: one of psys's own, of the user's, or imported from an .onnx file."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from psys.augment.batch import Colour, normalise
from psys.compute.flat import FlatModel
from psys.data.store import PreparedStore
from psys.errors import PsysError
from psys.models.registry import build
from psys.run.config import RunConfig

ONNX = ".onnx"
_MEASURED = 256  # images


class ImageFormat(NamedTuple):
    """What a network gets: images (3, height, width), normalised by `mean` and `std` of the channels."""

    size: tuple[int, int] = (32, 32)
    mean: Colour = (0.5, 0.5, 0.5)
    std: Colour = (0.25, 0.25, 0.25)


USUAL = ImageFormat()
"""For a check before there is a store"""


def format_of(store: PreparedStore) -> ImageFormat:
    """The images of a store."""
    return ImageFormat(store.image_size, store.channel_mean, store.channel_std)


def build_network(config: RunConfig, classes: int, images: ImageFormat) -> nn.Module:
    """The run's network for `classes`. Raises PsysError if it is unknown, cannot be made, or is another file's."""
    return network_and_notes(config, classes, images)[0]


def network_and_notes(config: RunConfig, classes: int, images: ImageFormat) -> tuple[nn.Module, tuple[str, ...]]:
    """The run's network, and what the user is to know of it. Raises PsysError as `build_network`."""
    if not config.model.endswith(ONNX):
        return build(config.model, classes, images.size), ()
    if config.model_hash and file_hash(config.model) != config.model_hash:
        raise PsysError(
            f"{config.model} is not the file that the run was started with: copy that one to this host, and name it "
            "with --model"
        )
    # Imported here: a worker with a network of psys's own needs no ONNX.
    from psys.onnx.import_ import import_classifier

    return import_classifier(Path(config.model), classes, *images, config.weights, config.batchnorm)


def measure_batch_norm(model: FlatModel, store: PreparedStore) -> None:
    """Fill the batch norms that `--batchnorm restore` has put back, by the statistics of training images."""
    from psys.onnx.folded import measure

    images = store.split("train").images
    rows = np.linspace(0, len(images) - 1, min(len(images), _MEASURED)).astype(np.int64)
    measure(model.module, normalise(torch.from_numpy(images[rows]), store.channel_mean, store.channel_std))


def checked_network(config: RunConfig, classes: int, images: ImageFormat) -> tuple[FlatModel, tuple[str, ...]]:
    """The run's network as the workers have it, after one image, and its notes. Raises PsysError if it does not fit."""
    module, notes = network_and_notes(config, classes, images)
    model = FlatModel(module)
    try:
        with torch.inference_mode():
            scores = module.eval()(torch.zeros(1, 3, *images.size))
    except PsysError:
        raise
    except Exception as error:  # of the user's code
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise PsysError(f"model '{config.model}' fails on images of {images.size}: {reason}") from error
    if not isinstance(scores, torch.Tensor) or scores.shape != (1, classes):
        found = f"a tensor {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else f"a {type(scores).__name__}"
        raise PsysError(f"model '{config.model}' returns {found} for one image: scores (1, {classes}) were expected")
    return model, notes


def file_hash(model: str) -> str | None:
    """SHA-256 of a model's .onnx file, weights beside it not included; None for a network without a file."""
    if not model.endswith(ONNX):
        return None
    try:
        with open(model, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PsysError(
            f"cannot read the model {model}: {error.strerror}; on another host, copy the file and name it with --model"
        ) from None


def with_model_here(config: RunConfig, model: str | None) -> RunConfig:
    """The settings with this host's path of the .onnx file: `model` if given, or the file's name in this folder."""
    if not config.model.endswith(ONNX):
        return config
    here = Path(Path(config.model).name)
    if model is None and not Path(config.model).exists() and here.exists():
        model = str(here)
    return config.model_copy(update={"model": model}) if model else config

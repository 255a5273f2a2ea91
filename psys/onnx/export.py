"""Export a trained network as one self-contained .onnx file from pixels to probabilities."""

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from psys.augment.batch import Colour, normalise
from psys.errors import PsysError


class PixelClassifier(nn.Module):
    """Normalisation, a CPU copy of `model` in eval mode, and softmax: (B, H, W, 3) uint8 -> (B, classes) float32."""

    def __init__(self, model: nn.Module, mean: Colour, std: Colour) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float()
        self.mean = mean
        self.std = std
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(normalise(images, self.mean, self.std))
        return logits.softmax(dim=1)


def export(
    model: nn.Module,
    path: Path,
    *,
    image_size: tuple[int, int],
    mean: Colour,
    std: Colour,
    classes: Sequence[str],
    metadata: Mapping[str, str],
) -> None:
    """Write `model` with its normalisation and softmax to `path`, atomically; `model` itself is not changed.

    The file's input is `images` (batch, H, W, 3) uint8 with any batch size; its output is `probabilities`
    (batch, classes) float32. Its metadata properties are `metadata` and `classes`, the class names as JSON.
    mean, std: of each channel, for pixel values scaled to 0..1. Raises PsysError if the number of classes differs from
    the network's outputs or the file cannot be written.
    """
    classifier = PixelClassifier(model, mean, std)
    # Two images: the exporter would treat a batch size of one as a constant.
    pixels = torch.zeros(2, *image_size, 3, dtype=torch.uint8)
    with torch.no_grad():
        outputs = classifier(pixels).shape[1]
    if outputs != len(classes):
        raise PsysError(
            f"cannot export to {path}: the model has {outputs} outputs, but there are {len(classes)} classes"
        )
    with _quiet():
        program = torch.onnx.export(
            classifier,
            (pixels,),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        )
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces with file paths of this machine
    onnx.helper.set_model_props(proto, {**metadata, "classes": json.dumps(list(classes))})
    onnx.checker.check_model(proto, full_check=True)
    aside = path.with_name(path.name + ".part")
    try:
        aside.write_bytes(proto.SerializeToString())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise PsysError(f"cannot write {path}: {error.strerror}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's warnings about other packages' code; errors are still printed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

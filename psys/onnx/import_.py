"""Makes a network that trains of a classifier's .onnx file from any exporter."""

import copy
import math
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from psys.augment.batch import Colour
from psys.errors import PsysError
from psys.onnx.batch import free_batch
from psys.onnx.classifier import ImportedClassifier, Pixels, declared_range
from psys.onnx.folded import folded_convolutions, restore_batch_norm
from psys.onnx.graph import Graph, Node
from psys.onnx.head import drop_probabilities, replace_head
from psys.onnx.network import Network
from psys.onnx.read import read_graph


class Imported(NamedTuple):
    """A network ready to train, and what was changed or is to be known, a sentence each."""

    module: ImportedClassifier
    notes: tuple[str, ...]


def import_network(path: Path) -> Network:
    """The file's own function: input and output are those of the file, for any number of images. See `Network`.

    Raises PsysError as `read_graph` and `Network` do.
    """
    try:
        graph = read_graph(path)
        free_batch(graph, _example_shape(graph, (32, 32)))
        return Network(graph)
    except PsysError as error:
        raise _named(path, error) from None


def import_classifier(
    path: Path,
    classes: int,
    image_size: tuple[int, int],
    mean: Colour,
    std: Colour,
    weights: Literal["keep", "reinit"],
    batchnorm: Literal["keep", "restore"] = "keep",
) -> Imported:
    """The file's network for images (B, 3, H, W) normalised by `mean` and `std` -> (B, classes) scores.

    Layout, size, channels and range of the pixels follow what the file declares. A final softmax is dropped, and a last
    layer of other classes is replaced. `weights` reinit: all weights are drawn anew. `batchnorm` restore: what an
    exporter folded is put back, and is to be filled by `measure`. Raises PsysError, in one line, for a file that is no
    image classifier or cannot be trained.
    """
    try:
        graph = read_graph(path)
        shape = _example_shape(graph, image_size)
        pixels = _pixels(graph, shape)
        notes = _notes(graph, pixels, image_size)
        if batchnorm == "restore":
            notes.append(_restored(restore_batch_norm(graph)))
        elif convolutions := folded_convolutions(graph):
            notes.append(
                f"it has {len(convolutions)} convolutions with a bias and no batch norm, which its exporter has "
                "probably folded: at usual learning rates such a network diverges; --batchnorm restore puts it back"
            )
        dropped = drop_probabilities(graph)
        if dropped:
            notes.append(f"its final {dropped} is dropped: training works on scores")
        output = free_batch(graph, shape)
        if len(output) < 2 or math.prod(output[2:]) != 1:
            raise PsysError(f"its output has the shape {tuple(output)}: class scores (batch, classes) were expected")
        network = Network(graph)
        _check_gradient(network, shape)
        if output[1] != classes:
            replace_head(graph, output[1], classes)
            notes.append(f"its last layer of {output[1]} classes is replaced by a new one of {classes}")
            network = Network(graph)
        if weights == "reinit":
            network.reinitialise()
            notes.append("all its weights are drawn anew")
        return Imported(ImportedClassifier(network, pixels, mean, std), tuple(notes))
    except PsysError as error:
        raise _named(path, error) from None


def _restored(number: int) -> str:
    if not number:
        raise PsysError("--batchnorm restore found nothing to put back: no convolutions without normalisation")
    return f"a batch norm is put back behind each of its {number} convolutions"


def _named(path: Path, error: PsysError) -> PsysError:
    return PsysError(f"{path}: {error}") if not str(error).startswith(str(path)) else error


def _notes(graph: Graph, pixels: Pixels, image_size: tuple[int, int]) -> list[str]:
    notes = []
    if pixels.size != image_size:
        notes.append(
            f"images of {image_size[0]} x {image_size[1]} are resized to its {pixels.size[0]} x {pixels.size[1]}"
        )
    if pixels.range is not None:
        notes.append(f"it takes pixels from {pixels.range[0]:g} to {pixels.range[1]:g}")
    return notes


def _pixels(graph: Graph, shape: list[int]) -> Pixels:
    """What the input declares. Raises PsysError if it cannot be an image."""
    metadata = {key.lower(): value.lower() for key, value in graph.metadata.items()}
    bgr = metadata.get("image.bitmappixelformat", "").startswith("bgr")
    if len(shape) == 2:
        for channels in (3, 1):
            side = math.isqrt(shape[1] // channels)
            if channels * side * side == shape[1]:
                return Pixels((side, side), channels, False, True, declared_range(graph), bgr)
        raise PsysError(f"its input has {shape[1]} numbers, which are no square image of 1 or 3 channels")
    last = _channels_last(graph)
    channels = shape[3] if last else shape[1]
    if channels not in (1, 3):
        raise PsysError(f"its input has {channels} channels: images of 1 or 3 were expected")
    size = (shape[1], shape[2]) if last else (shape[2], shape[3])
    return Pixels(size, channels, last, False, declared_range(graph), bgr)


def _example_shape(graph: Graph, image_size: tuple[int, int]) -> list[int]:
    """The declared shape of the input; where no size is declared, one image of `image_size` with three channels."""
    usual = [1, *image_size, 3] if _channels_last(graph) else [1, 3, *image_size]
    if len(graph.input_shape) == 2:
        usual = [1, math.prod(usual)]
    return [declared or size for declared, size in zip(graph.input_shape, usual, strict=True)]


def _channels_last(graph: Graph) -> bool:
    """Whether the input is (batch, height, width, channels)."""
    first, last = graph.input_shape[1], graph.input_shape[-1]
    if (first in (1, 3)) != (last in (1, 3)):
        return last in (1, 3)

    def transposed(node: Node) -> bool:
        return node.op == "Transpose" and node.attributes.get("perm") == [0, 3, 1, 2]

    return any(transposed(node) for node in graph.users(graph.input))


def _check_gradient(network: Network, shape: list[int]) -> None:
    """Raises PsysError if no gradient reaches the weights; computes nothing."""
    if not any(True for _ in network.parameters()):
        raise PsysError("it has no float weights: nothing can be trained")
    probe = copy.deepcopy(network).to("meta").train()
    output = probe(torch.empty((2, *shape[1:]), device="meta"))
    parameters = list(probe.parameters())
    found: tuple[torch.Tensor | None, ...] = ()
    if output.requires_grad:
        found = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    reached = sum(p.numel() for p, g in zip(parameters, found, strict=False) if g is not None)
    if reached < sum(p.numel() for p in parameters) / 2:
        raise PsysError("no gradient reaches its weights: an operator such as ArgMax or Round stops it")

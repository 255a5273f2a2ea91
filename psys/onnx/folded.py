"""Batch norm that an exporter folded into the convolutions before it: recognised, and put back."""

import numpy as np
import torch
from torch import Tensor, nn

from psys.onnx.graph import Graph, Node
from psys.onnx.network import Network

_NORMALISATION = ("BatchNormalization", "LayerNormalization", "GroupNormalization", "InstanceNormalization")
_FEW = 3  # convolutions with a bias that need no explanation
_EPSILON = 1e-5
_RESTORED = "restored_norm_"


def folded_convolutions(graph: Graph) -> list[Node]:
    """The convolutions that batch norm was probably folded into: they have a bias, and the graph no normalisation."""
    found = [node for node in graph.nodes if node.op == "Conv" and len(node.inputs) > 2]
    normalised = any(node.op in _NORMALISATION for node in graph.nodes)
    return found if len(found) >= _FEW and not normalised else []


def restore_batch_norm(graph: Graph) -> int:
    """Put a batch norm that changes nothing behind each such convolution; their number. `measure` fills them."""
    convolutions = folded_convolutions(graph)
    for number, node in enumerate(convolutions):
        channels = len(graph.constants[node.inputs[1]])
        before = f"{_RESTORED}{number}"
        neutral = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "variance": 1 - _EPSILON}
        for name, value in neutral.items():
            graph.constants[f"{before}_{name}"] = np.full(channels, value, np.float32)
        norm = Node(
            "BatchNormalization",
            before,
            [before, *(f"{before}_{name}" for name in neutral)],
            node.outputs,
            {"epsilon": _EPSILON},
        )
        node.outputs = [before]
        graph.nodes.insert(graph.nodes.index(node) + 1, norm)
    return len(convolutions)


@torch.no_grad()
def measure(module: nn.Module, images: Tensor) -> None:
    """Give restored batch norms the statistics of `images` (N, 3, H, W), and scales and biases that undo them.

    The network computes in eval mode what it computed before, and in training mode it is normalised. No other module
    is changed.
    """
    for network in (each for each in module.modules() if isinstance(each, Network)):
        network.watch(_RESTORED, _fill)
    module.eval()(images)
    for network in (each for each in module.modules() if isinstance(each, Network)):
        network.watch(None, None)


def _fill(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> None:
    axes = [0, *range(2, x.dim())]
    variance.copy_(x.var(dim=axes, unbiased=False))
    mean.copy_(x.mean(dim=axes))
    scale.copy_((variance + _EPSILON).sqrt())
    bias.copy_(mean)

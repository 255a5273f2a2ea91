"""A multilayer perceptron: many parameters for little computation, for benchmarks of the transport."""

import math

from torch import Tensor, nn

from psys.errors import PsysError
from psys.models.linear import Linear

IMAGE = (3, 32, 32)


class MLP(nn.Module):
    """(B, 3, 32, 32) normalised float images -> (B, num_classes) logits, through two hidden layers with ReLU.

    hidden: units of each hidden layer; 3,748 units give 25,606,346 parameters with 10 classes. `forward` raises
    PsysError for images of another size: the first layer has a weight for each of the 3,072 inputs.
    """

    def __init__(self, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            Linear(math.prod(IMAGE), hidden),
            nn.ReLU(),
            Linear(hidden, hidden),
            nn.ReLU(),
            Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != IMAGE:
            raise PsysError(f"an mlp takes images of shape {IMAGE}, got {tuple(x.shape[1:])}: choose a resnet instead")
        logits: Tensor = self.layers(x)
        return logits

"""One gradient: forward, loss and backward on a batch of views."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from psys.compute.flat import FlatModel
from psys.compute.graph import Replay
from psys.models.linear import Linear


class StepResult(NamedTuple):
    """What a gradient step saw, over the views of its batch."""

    loss: float  # mean cross-entropy, without label smoothing and class weights: it compares with that of validation
    correct: int  # views whose likeliest class is theirs, or has most of a mixed label
    views: int
    gradient_norm: float  # Euclidean, before clipping; not finite if an element is not


class GradientStep:
    """Leaves the mean gradient of a batch in `model.gradient` and its batch statistics in `model.statistics`.

    `gradient_clip`: a gradient whose Euclidean norm is larger is scaled to this norm (Pascanu et al., "On the
    difficulty of training recurrent neural networks", ICML 2013). `class_weights`: (classes,) float32 on the model's
    device; the loss is then the mean over the views of sum_c weight_c * target_c * -log probability_c, for labels and
    for probabilities alike. torch's own mean divides by the sum of the labels' weights, but not with probabilities.

    On a GPU a CUDA graph is replayed for each shape of batch, of which an epoch has two at most.
    """

    def __init__(
        self,
        model: FlatModel,
        precision: torch.dtype,
        label_smoothing: float = 0.0,
        gradient_clip: float | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        self._model, self._precision, self._label_smoothing = model, precision, label_smoothing
        self._gradient_clip, self._class_weights = gradient_clip, class_weights
        self._replays: dict[torch.Size, Replay] = {}
        gradients: dict[Tensor, Tensor] = dict(zip(model.parameter_list, model.parameter_gradients, strict=True))
        for layer in model.module.modules():
            if isinstance(layer, Linear):
                layer.weight_gradient = gradients[layer.weight]

    def __call__(self, views: Tensor, labels: Tensor) -> StepResult:
        """views: (V, 3, H, W) float32, normalised; labels: (V,) int64, or probabilities (V, classes) float32.

        The loss is the mean over views.

        Hoffer et al., CVPR 2020.
        """
        self._model.module.train()
        seen = self._replay(views, labels) if views.is_cuda else self._compute(views, labels)
        loss, correct, norm = seen.tolist()
        if self._gradient_clip is not None and self._gradient_clip < norm < math.inf:
            self._model.gradient.mul_(self._gradient_clip / norm)
        return StepResult(loss, int(correct), len(labels), norm)

    def _replay(self, views: Tensor, labels: Tensor) -> Tensor:
        if views.shape not in self._replays:
            statistics = self._model.statistics.clone()
            self._replays[views.shape] = Replay(self._compute, views, labels)
            self._model.statistics.copy_(statistics)  # capturing has run the step
        return self._replays[views.shape](views, labels)

    def _compute(self, views: Tensor, labels: Tensor) -> Tensor:
        """Mean loss, right answers, norm of the gradient: (3,) float32 on the device. To fetch them is to wait."""
        # No weight is used twice in a forward, so a cache of their casts would only hold memory.
        with torch.autocast(
            views.device.type, self._precision, enabled=self._precision != torch.float32, cache_enabled=False
        ):
            logits = self._model.module(views)
        logits = logits.float()
        loss = self._loss(logits, labels)
        # A parameter that this batch does not use has a gradient of zeros.
        parameters = self._model.parameter_list
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        # Accumulating into zeros, as backward() would, reads and writes the whole gradient once more. What a layer has
        # left in its place is that tensor itself, which is not copied.
        torch._foreach_copy_(self._model.parameter_gradients, gradients)
        logits = logits.detach()
        classes = labels if labels.dim() == 1 else labels.argmax(1)
        norm = torch.linalg.vector_norm(self._model.gradient)
        return torch.stack([F.cross_entropy(logits, labels), (logits.argmax(1) == classes).sum().float(), norm])

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        weights, smoothing = self._class_weights, self._label_smoothing
        if weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        total = F.cross_entropy(logits, labels, weights, label_smoothing=smoothing, reduction="sum")
        return total / len(labels)

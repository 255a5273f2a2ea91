"""The gradient of any batch of a run: it depends on the batch's number and the parameters, not on who computes it."""

from torch import Tensor

from psys.compute.batches import Batches
from psys.compute.device import Precision, choose_precision
from psys.compute.flat import FlatModel
from psys.compute.step import GradientStep, StepResult


class BatchGradient:
    """Computes the gradient of any of the `batches` with any of the `models`."""

    def __init__(
        self,
        batches: Batches,
        precision: Precision,
        label_smoothing: float,
        gradient_clip: float | None,
        class_weights: Tensor | None,
        *models: FlatModel,
    ) -> None:
        self.batches = batches
        device = models[0].parameters.device
        dtype = choose_precision(precision, device)
        weights = None if class_weights is None else class_weights.to(device)
        self._steps = {model: GradientStep(model, dtype, label_smoothing, gradient_clip, weights) for model in models}

    def __call__(self, batch: int, model: FlatModel) -> StepResult:
        """Leave the batch's gradient at the model's parameters in `model.gradient`, its statistics in the model's."""
        return self._steps[model](*self.batches[batch])

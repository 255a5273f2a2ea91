"""Local SGD: a worker takes steps of its own with several batches before it hands in what they changed."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from psys.compute.flat import FlatModel
from psys.compute.step import StepResult
from psys.data.batch_plan import BatchPlan


class LocalSteps:
    """Computes leases of consecutive batches of an epoch with `gradient`, which leaves a batch's in `model.gradient`.

    `leases` divides the images into leases, `batches` divides the same images into batches. A lease of one batch is the
    batch's gradient. With more, each batch is a step of plain SGD (Stich, "Local SGD converges fast and communicates
    little", ICLR 2019), and the lease's gradient is the sum of the steps' gradients: at the rate of the steps, without
    momentum, it moves the parameters to where the steps end. Momentum of the server is then that of SlowMo (Wang et
    al., ICLR 2020) and, as Nesterov momentum, of DiLoCo (Douillard et al., 2023). `weight_decay` is that of each step.
    """

    def __init__(
        self,
        gradient: Callable[[int, FlatModel], StepResult],
        leases: BatchPlan,
        batches: BatchPlan,
        weight_decay: float = 0.0,
    ) -> None:
        self._gradient, self._leases, self._batches, self._decay = gradient, leases, batches, weight_decay
        self._vectors: tuple[Tensor, Tensor] | None = None  # where the steps are, and the sum of their gradients

    def __call__(self, lease: int, model: FlatModel, learning_rate: float) -> StepResult:
        """Leave the lease's gradient at the model's parameters in `model.gradient`; the statistics are the last step's.

        The result is that of all its batches; the norm is the sum's, and not finite if that of one step is not.
        """
        batches = self._batches.within(*self._leases.place(lease))
        if len(batches) == 1 and not self._decay:
            return self._gradient(batches[0], model)
        # The model's gradient may take the place of its parameters.
        position, total = self._vectors = self._vectors or (
            torch.empty_like(model.gradient),
            torch.empty_like(model.gradient),
        )
        position.copy_(model.parameters)
        total.zero_()
        steps: list[StepResult] = []
        for batch in batches:
            model.parameters.copy_(position)
            steps.append(self._gradient(batch, model))
            model.gradient[: model.decayed].add_(position[: model.decayed], alpha=self._decay)
            total.add_(model.gradient)
            position.sub_(model.gradient, alpha=learning_rate)
        model.gradient.copy_(total)
        views = sum(step.views for step in steps)
        finite = all(math.isfinite(step.gradient_norm) for step in steps)
        return StepResult(
            loss=sum(step.loss * step.views for step in steps) / views,
            correct=sum(step.correct for step in steps),
            views=views,
            gradient_norm=torch.linalg.vector_norm(total).item() if finite else math.nan,
        )

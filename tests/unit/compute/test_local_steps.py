"""Leases of several batches, against SGD steps written out."""

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from psys.compute.flat import FlatModel
from psys.compute.local_steps import LocalSteps
from psys.compute.step import StepResult
from psys.data.batch_plan import BatchPlan

SAMPLES, BATCH, STEPS, RATE, DECAY = 23, 4, 4, 0.5, 0.01
"""Six batches an epoch: a lease of four and one of two."""


def of_leases(steps: int = STEPS) -> tuple[BatchPlan, BatchPlan]:
    return BatchPlan(SAMPLES, steps * BATCH), BatchPlan(SAMPLES, BATCH)


def gradient_at(parameters: Tensor, batch: int) -> Tensor:
    return torch.sin(parameters.flip(0) + batch)


def step(batch: int, model: FlatModel) -> StepResult:
    gradient = gradient_at(model.parameters, batch)
    model.gradient.copy_(gradient)
    model.statistics.add_(batch)
    return StepResult(float(batch), batch, 1 + batch % 2, gradient.norm().item())


def new_model(shared: bool) -> FlatModel:
    """A model of ten parameters and two statistics. `shared`: its gradient takes the place of its parameters."""
    model = FlatModel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), torch.empty(10) if shared else None)
    model.parameters.copy_(torch.linspace(-1, 1, 10))
    return model


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize(
    ("steps", "lease", "batches"),
    [(STEPS, 0, range(4)), (STEPS, 1, range(4, 6)), (STEPS, 2, range(6, 10)), (5, 1, range(5, 6)), (99, 0, range(6))],
)
def test_gradient_of_a_lease_is_the_sum_of_those_of_its_sgd_steps(
    shared: bool, decay: float, steps: int, lease: int, batches: range
) -> None:
    """With weight decay of the four weights in each step, also in a lease of one batch."""
    model = new_model(shared)
    parameters, statistics = model.parameters.clone(), model.statistics.clone()
    compute = LocalSteps(step, *of_leases(steps), decay)
    compute(3, new_model(shared), RATE)  # what it computed before does not matter
    result = compute(lease, model, RATE)
    total = torch.zeros(10)
    for batch in batches:
        gradient = gradient_at(parameters, batch)
        gradient[:4] += decay * parameters[:4]
        total += gradient
        parameters = parameters - RATE * gradient
    torch.testing.assert_close(model.gradient, total)
    assert torch.equal(model.statistics, statistics + sum(batches))
    views = [1 + batch % 2 for batch in batches]
    assert (result.views, result.correct) == (sum(views), sum(batches))
    assert result.loss == pytest.approx(sum(map(math.prod, zip(batches, views, strict=True))) / sum(views))
    assert result.gradient_norm == pytest.approx(total.norm().item())


def test_lease_of_one_batch_is_the_gradient_of_the_batch() -> None:
    model, other = new_model(True), new_model(True)
    assert LocalSteps(step, *of_leases(1))(3, model, RATE) == step(3, other)
    assert torch.equal(model.gradient, other.gradient)


@pytest.mark.parametrize("broken", [0, 2, 3])
def test_norm_is_not_finite_if_that_of_any_step_is_not(broken: int) -> None:
    def breaking(batch: int, model: FlatModel) -> StepResult:
        result = step(batch, model)
        return result._replace(gradient_norm=math.inf) if batch == broken else result

    assert not math.isfinite(LocalSteps(breaking, *of_leases())(0, new_model(True), RATE).gradient_norm)


@given(
    st.integers(1, 60),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.lists(st.integers(1, 3), min_size=2, max_size=2),
    st.integers(1, 8),
)
def test_leases_of_an_epoch_are_its_batches_in_order(
    samples: int, sizes: list[int], lengths: list[int], steps: int
) -> None:
    """Whatever the batch sizes of earlier epochs were."""
    ends = list(accumulate(lengths))[: len(sizes) - 1]
    *before, last = sizes
    earlier = list(zip(before, ends, strict=True))
    batches = BatchPlan(samples, last, earlier)
    leases = BatchPlan(samples, last * steps, [(size * steps, epoch) for size, epoch in earlier])
    epochs = sum(lengths) + 2
    found = [batches.within(*leases.place(lease)) for lease in range(leases.batches(epochs))]
    assert [batch for lease in found for batch in lease] == list(range(batches.batches(epochs)))
    assert all(len(lease) <= steps for lease in found)
    assert [leases.size(number) for number in range(len(found))] == [sum(map(batches.size, lease)) for lease in found]

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from psys.compute.flat import FlatModel
from psys.compute.rows import Rows
from psys.compute.step import GradientStep
from psys.data.store import PreparedStore
from psys.models.resnet import resnet

Batch = tuple[torch.Tensor, torch.Tensor]


def test_the_gradient_is_torchs_and_does_not_pile_up(views: Batch) -> None:
    model = FlatModel(resnet(8))
    step = GradientStep(model, torch.float32, label_smoothing=0.1)
    result = step(*views)
    first = model.gradient.clone()
    again = step(*views)
    assert torch.equal(model.gradient, first)
    assert (result.loss, result.correct, result.views) == (again.loss, again.correct, 16)
    logits = model.module(views[0])
    F.cross_entropy(logits, views[1], label_smoothing=0.1).backward()
    for parameter, gradient in zip(model.parameter_list, model.parameter_gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    assert result.loss == pytest.approx(F.cross_entropy(logits, views[1]).item(), abs=1e-6)
    assert result.correct == int((logits.argmax(1) == views[1]).sum())


def test_a_smaller_last_batch(views: Batch) -> None:
    model = FlatModel(resnet(8))
    step = GradientStep(model, torch.float32)
    assert step(*views).views == 16
    assert step(views[0][:5], views[1][:5]).views == 5
    of_five = model.gradient.clone()
    GradientStep(model, torch.float32)(views[0][:5], views[1][:5])
    assert torch.equal(model.gradient, of_five)


def test_labels_may_be_probabilities(views: Batch) -> None:
    images, labels = views
    certain = F.one_hot(labels, 10).float()
    model = FlatModel(resnet(8))
    step = GradientStep(model, torch.float32, label_smoothing=0.1)
    expected, gradient = step(images, labels), model.gradient.clone()
    found = step(images, certain)
    assert (found.correct, found.views) == (expected.correct, 16)
    assert found.loss == pytest.approx(expected.loss, abs=1e-6)
    torch.testing.assert_close(model.gradient, gradient)
    # A mixture is judged by its greater part, and its gradient lies between those of its parts.
    assert step(images, 0.6 * certain + 0.4 * certain.roll(1, dims=0)).correct == expected.correct
    mixed = model.gradient.clone()
    step(images, labels.roll(1))
    torch.testing.assert_close(mixed, 0.6 * gradient + 0.4 * model.gradient, atol=1e-6, rtol=1e-4)


def test_bf16_is_close_to_fp32(views: Batch) -> None:
    model = FlatModel(resnet(8))
    GradientStep(model, torch.float32)(*views)
    exact = model.gradient.clone()
    GradientStep(model, torch.bfloat16)(*views)
    assert model.gradient.dtype == torch.float32
    assert not torch.equal(exact, model.gradient)
    assert F.cosine_similarity(exact, model.gradient, dim=0) > 0.98


def test_rows_of_every_column_in_the_order_asked(small_store: PreparedStore) -> None:
    split = small_store.split("train")
    indices = np.array([7, 3, 150, 3])
    rows = Rows(split, torch.device("cpu"))[indices]
    for column, found in zip(split, rows, strict=True):
        np.testing.assert_array_equal(found.numpy(), column[indices])
    rows[0].zero_()  # a copy: the store's file is read-only
    assert split.images[7].any()

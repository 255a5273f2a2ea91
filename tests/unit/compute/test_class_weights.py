import numpy as np
import pytest
import torch
import torch.nn.functional as F

from psys.compute.class_weights import class_weights
from psys.compute.flat import FlatModel
from psys.compute.step import GradientStep
from psys.data.store import PreparedStore
from psys.errors import PsysError
from psys.models.resnet import resnet
from psys.run.assembly import loss_weights
from psys.run.config import RunConfig

LABELS = np.array([0, 0, 0, 1, 3, 3])
Batch = tuple[torch.Tensor, torch.Tensor]


def test_balanced_weights_are_images_over_classes_times_images_of_the_class() -> None:
    weights = class_weights("balanced", LABELS, 4)
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([6 / 9, 6 / 3, 0.0, 6 / 6]))
    assert weights[LABELS].mean().item() == pytest.approx(1)


def test_given_weights_are_taken_and_must_be_as_many_as_the_classes() -> None:
    weights = class_weights("1,2.5,0,1", LABELS, 4)
    assert weights is not None
    assert weights.tolist() == [1, 2.5, 0, 1]
    assert class_weights("none", LABELS, 4) is None
    with pytest.raises(PsysError, match="--class-weights has 2 weights, and the store has 4 classes"):
        class_weights("1,2", LABELS, 4)


@pytest.mark.parametrize("setting", ["", "even", "1,,2", "1,-2", "nan,1", "inf,1", "0,0"])
def test_settings_that_are_no_weights_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="expected none, balanced, or numbers"):
        RunConfig(class_weights=setting)


def test_balanced_weights_of_a_run_count_its_training_images(small_store: PreparedStore) -> None:
    config = RunConfig(class_weights="balanced", validation_share=0.25)
    weights = loss_weights(config, small_store)
    assert weights is not None
    torch.testing.assert_close(weights, torch.ones(10))  # the sample's classes have equally many


def test_weighted_gradient_is_the_mean_of_the_images_weighted_losses(views: Batch) -> None:
    images, labels = views
    weights = torch.linspace(0.5, 2, 10)
    model = FlatModel(resnet(8))
    result = GradientStep(model, torch.float32, class_weights=weights)(images, labels)
    logits = model.module(images)
    losses = F.cross_entropy(logits, labels, reduction="none")
    expected = torch.autograd.grad((weights[labels] * losses).mean(), model.parameter_list)
    for found, gradient in zip(model.parameter_gradients, expected, strict=True):
        torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-4)
    assert result.loss == pytest.approx(losses.mean().item(), abs=1e-5)  # reported without weights


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_labels_and_the_same_probabilities_have_the_same_weighted_gradient(
    views: Batch, label_smoothing: float
) -> None:
    images, labels = views
    model = FlatModel(resnet(8))
    step = GradientStep(model, torch.float32, label_smoothing, class_weights=torch.linspace(0.5, 2, 10))
    step(images, labels)
    gradient = model.gradient.clone()
    step(images, F.one_hot(labels, 10).float())
    torch.testing.assert_close(model.gradient, gradient, atol=1e-6, rtol=1e-4)

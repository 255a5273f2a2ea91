from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from psys.augment.batch import AugmentConfig, augment, normalise
from psys.augment.foreground import MODES
from psys.config import validate
from psys.errors import PsysError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
OFF: dict[str, Any] = {"flip": False, "shift": 0}
BLACK = (-torch.tensor(MEAN) / torch.tensor(STD)).view(3, 1, 1)


class Sample:
    """A batch of real images; the masks are their bright pixels."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.labels = torch.arange(len(images))
        self.masks = images.amax(dim=3) > 120
        self.packed = torch.from_numpy(np.packbits(self.masks.flatten(1).numpy(), axis=1))
        self.usable = torch.ones(len(images), dtype=torch.bool)

    def augment(self, seed: int = 1, **settings: Any) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        config = AugmentConfig(**settings)
        return augment(
            self.images, self.labels, self.packed, self.usable, config, len(self.labels), MEAN, STD, generator
        )


@pytest.fixture
def sample(images: Tensor) -> Sample:
    return Sample(images.clone())


def test_normalise_values_and_memory_format(images: Tensor) -> None:
    result = normalise(images, MEAN, STD)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = (images[7, 3, 5].double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(result[7, :, 3, 5], expected.float())
    assert result.mean().abs() < 0.2  # MEAN and STD are those of CIFAR-10
    assert result.std() == pytest.approx(1, abs=0.1)


def test_augment_without_transforms_is_normalise(sample: Sample) -> None:
    views, labels = sample.augment(**OFF)
    assert torch.equal(views, normalise(sample.images, MEAN, STD))
    assert torch.equal(labels, sample.labels)


EVERYTHING: dict[str, Any] = {
    "views": 4,
    "rotate_degrees": 10,
    "cutout_size": 16,
    "cutout_share": 0.5,
    "foreground": dict.fromkeys(MODES, 0.1),
}


def test_views_depend_on_the_seed(sample: Sample) -> None:
    views = sample.augment(seed=1, **EVERYTHING)[0]
    assert torch.equal(views, sample.augment(seed=1, **EVERYTHING)[0])
    assert not torch.equal(views, sample.augment(seed=2, **EVERYTHING)[0])


def test_inputs_are_not_changed(sample: Sample) -> None:
    before = [tensor.clone() for tensor in (sample.images, sample.labels, sample.packed, sample.usable)]
    sample.augment(**EVERYTHING)
    for old, new in zip(before, (sample.images, sample.labels, sample.packed, sample.usable), strict=True):
        assert torch.equal(old, new)


def test_views_are_independent_with_equal_labels(sample: Sample) -> None:
    views, labels = sample.augment(views=4)
    count = len(sample.images)
    assert views.shape == (4 * count, 3, 32, 32)
    assert views.dtype == torch.float32
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, sample.labels.repeat(4))
    first, second = views[:count], views[count : 2 * count]
    assert (first != second).flatten(1).any(dim=1).float().mean() > 0.9
    still, _ = sample.augment(views=4, **OFF)
    assert torch.equal(still, normalise(sample.images, MEAN, STD).repeat(4, 1, 1, 1))


def kinds(sample: Sample, views: Tensor) -> tuple[Tensor, Tensor]:
    """Which views, without flip and shift, show the foreground on black, and which have a cutout hole."""
    full = normalise(sample.images, MEAN, STD)
    background = ~sample.masks[:, None]
    on_black = torch.where(background, BLACK, full)
    repeats = len(views) // len(full)
    is_foreground = (views == on_black.repeat(repeats, 1, 1, 1)).flatten(1).all(dim=1)
    changed = views != full.repeat(repeats, 1, 1, 1)
    is_cut = changed.flatten(1).any(dim=1) & (~changed | (views.abs() < 0.01)).flatten(1).all(dim=1)
    return is_foreground, is_cut


@pytest.mark.parametrize(
    ("arm", "foreground_share", "cut_share"),
    [
        ({"cutout_size": 16}, 0.0, 1.0),
        ({"cutout_size": 16, "views": 4}, 0.0, 1.0),
        ({"cutout_size": 16, "views": 4, "cutout_share": 0.5}, 0.0, 0.5),
        ({"cutout_size": 16, "views": 4, "foreground": {"black": 0.25}}, 0.25, 0.75),
    ],
    ids=["cutout", "cutout+ba", "half cut", "trio"],
)
def test_shares_of_the_papers_experiments(
    sample: Sample, arm: dict[str, Any], foreground_share: float, cut_share: float
) -> None:
    views, _ = sample.augment(**OFF, **arm)
    is_foreground, is_cut = kinds(sample, views)
    assert not (is_foreground & is_cut).any()
    assert is_foreground.float().mean().item() == pytest.approx(foreground_share, abs=0.06)
    assert is_cut.float().mean().item() == pytest.approx(cut_share, abs=0.06)


def test_degenerate_masks_are_not_used(sample: Sample) -> None:
    sample.usable = torch.arange(len(sample.images)) % 2 == 0
    views, _ = sample.augment(**OFF, foreground={"black": 1.0})
    full = normalise(sample.images, MEAN, STD)
    is_foreground, _ = kinds(sample, views)
    assert bool(is_foreground[sample.usable].all())
    assert torch.equal(views[~sample.usable], full[~sample.usable])


def test_masks_move_with_their_images_in_augment(sample: Sample) -> None:
    views, _ = sample.augment(foreground={"black": 1.0})
    pixels = (views * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255
    brightest = pixels.amax(dim=1).round()
    assert bool(((brightest == 0) | (brightest > 120)).all())  # bright and therefore in the mask, or black
    assert (brightest > 120).any()


def test_augment_supports_any_image_shape(sample: Sample) -> None:
    oblong = Sample(sample.images[:, :20, :27].contiguous())
    views, _ = oblong.augment(**EVERYTHING)
    assert views.shape == (4 * len(oblong.images), 3, 20, 27)
    assert bool(views.isfinite().all())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("views", 0),
        ("shift", -1),
        ("rotate_degrees", 181),
        ("cutout_size", -1),
        ("cutout_share", 1.5),
    ],
)
def test_settings_out_of_range_are_rejected(name: str, value: float) -> None:
    with pytest.raises(PsysError, match=rf"setting '{name}'.*got {value}"):
        validate(AugmentConfig, {name: value}, where="flags")


@pytest.mark.parametrize(
    ("foreground", "complaint"),
    [
        ({"black": -0.1}, r"setting 'foreground.black'.*got -0.1"),
        ({"black": 0.6, "box_mask": 0.5}, r"setting 'foreground'.*black 0.6, box_mask 0.5 are 1.1"),
        ({"blakc": 0.5}, r"unknown setting 'foreground.blakc', did you mean 'foreground.black'"),
        ({"keep": 0.5}, r"'foreground.keep' is a kind of cutout: 'cutout_size' must be above 0"),
    ],
)
def test_invalid_shares_are_rejected(foreground: dict[str, float], complaint: str) -> None:
    with pytest.raises(PsysError, match=complaint):
        validate(AugmentConfig, {"foreground": foreground}, where="flags")


def test_shares_may_sum_to_one() -> None:
    shares = dict.fromkeys(MODES, 0.1) | {"black": 0.4}
    assert validate(AugmentConfig, {"foreground": shares, "cutout_size": 8}, where="flags").foreground.black == 0.4


def test_mixed_labels_are_probabilities(sample: Sample) -> None:
    views, labels = sample.augment(views=2, foreground={"mix": 0.5})
    assert labels.shape == (2 * len(sample.images), len(sample.images))
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(len(views)))
    is_mixed = (labels > 0).sum(dim=1) == 2
    assert is_mixed.float().mean().item() == pytest.approx(0.5, abs=0.1)
    # A view without visible foreground of its own image has only the other image's label.
    is_own = labels[~is_mixed].argmax(dim=1) == sample.labels.repeat(2)[~is_mixed]
    assert is_own.float().mean() > 0.9


def test_uncovered_pixels_are_black_or_the_mean_colour(sample: Sample) -> None:
    sample.masks = torch.ones_like(sample.masks)
    sample.packed = torch.full_like(sample.packed, 255)
    movement: dict[str, Any] = {"shift": 12, "rotate_degrees": 45}
    full, _ = sample.augment(**movement)
    on_black, _ = sample.augment(**movement, foreground={"black": 1.0})
    assert (on_black != full).any(dim=1).float().mean() < 0.1
    on_mean, _ = sample.augment(**movement, foreground={"mean": 1.0})
    uncovered = (full == BLACK).all(dim=1, keepdim=True) & (on_mean != full).any(dim=1, keepdim=True)
    assert 0.1 < uncovered.float().mean() < 0.9
    assert on_mean.masked_select(uncovered).abs().max() < 0.01
    # Otherwise they differ only at the edge, where interpolated pixels have less than half the image's weight.
    assert ((full != on_mean).any(dim=1, keepdim=True) & ~uncovered).float().mean() < 0.1

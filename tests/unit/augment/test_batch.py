from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from psys.augment.batch import AugmentConfig, augment, normalise
from psys.config import validate
from psys.errors import PsysError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
OFF: dict[str, Any] = {"flip": False, "shift": 0}
BLACK = (-torch.tensor(MEAN) / torch.tensor(STD)).view(3, 1, 1)


class Sample:
    """A batch of real images; the masks hold their bright pixels."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.labels = torch.arange(len(images))
        self.masks = images.amax(dim=3) > 120
        self.packed = torch.from_numpy(np.packbits(self.masks.flatten(1).numpy(), axis=1))
        self.usable = torch.ones(len(images), dtype=torch.bool)

    def augment(self, seed: int = 1, **settings: Any) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        config = AugmentConfig(**settings)
        return augment(self.images, self.labels, self.packed, self.usable, config, MEAN, STD, generator)


@pytest.fixture
def sample(images: Tensor) -> Sample:
    return Sample(images.clone())


def test_normalise_has_the_right_numbers_and_layout(images: Tensor) -> None:
    result = normalise(images, MEAN, STD)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = (images[7, 3, 5].double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(result[7, :, 3, 5], expected.float())
    assert result.mean().abs() < 0.2  # these are CIFAR-10's own statistics
    assert result.std() == pytest.approx(1, abs=0.1)


def test_all_off_is_exactly_the_normalisation(sample: Sample) -> None:
    views, labels = sample.augment(**OFF)
    assert torch.equal(views, normalise(sample.images, MEAN, STD))
    assert torch.equal(labels, sample.labels)


EVERYTHING: dict[str, Any] = {
    "views": 4,
    "rotate_degrees": 10,
    "cutout_size": 16,
    "cutout_share": 0.5,
    "foreground_share": 0.3,
}


def test_same_seed_same_views_other_seed_other_views(sample: Sample) -> None:
    views = sample.augment(seed=1, **EVERYTHING)[0]
    assert torch.equal(views, sample.augment(seed=1, **EVERYTHING)[0])
    assert not torch.equal(views, sample.augment(seed=2, **EVERYTHING)[0])


def test_inputs_stay_as_they_were(sample: Sample) -> None:
    before = [tensor.clone() for tensor in (sample.images, sample.labels, sample.packed, sample.usable)]
    sample.augment(**EVERYTHING)
    for then, now in zip(before, (sample.images, sample.labels, sample.packed, sample.usable), strict=True):
        assert torch.equal(then, now)


def test_views_are_independent_and_keep_their_labels(sample: Sample) -> None:
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
    """Which of the unmoved views are foreground images, and which have a hole."""
    whole = normalise(sample.images, MEAN, STD)
    background = ~sample.masks[:, None]
    alone = torch.where(background, BLACK, whole)
    repeats = len(views) // len(whole)
    is_foreground = (views == alone.repeat(repeats, 1, 1, 1)).flatten(1).all(dim=1)
    is_cut = ((views == 0) & (whole.repeat(repeats, 1, 1, 1) != 0)).flatten(1).any(dim=1)
    return is_foreground, is_cut


@pytest.mark.parametrize(
    ("arm", "foreground_share", "cut_share"),
    [
        ({"cutout_size": 16}, 0.0, 1.0),
        ({"cutout_size": 16, "views": 4}, 0.0, 1.0),
        ({"cutout_size": 16, "views": 4, "cutout_share": 0.5}, 0.0, 0.5),
        ({"cutout_size": 16, "views": 4, "foreground_share": 0.25}, 0.25, 0.75),
    ],
    ids=["cutout", "cutout+ba", "half cut", "trio"],
)
def test_the_papers_arms(sample: Sample, arm: dict[str, Any], foreground_share: float, cut_share: float) -> None:
    views, _ = sample.augment(**OFF, **arm)
    is_foreground, is_cut = kinds(sample, views)
    assert not (is_foreground & is_cut).any()
    assert is_foreground.float().mean().item() == pytest.approx(foreground_share, abs=0.06)
    assert is_cut.float().mean().item() == pytest.approx(cut_share, abs=0.06)


def test_degenerate_masks_never_make_a_foreground_image(sample: Sample) -> None:
    sample.usable = torch.arange(len(sample.images)) % 2 == 0
    views, _ = sample.augment(**OFF, foreground_share=1.0)
    whole = normalise(sample.images, MEAN, STD)
    is_foreground, _ = kinds(sample, views)
    assert bool(is_foreground[sample.usable].all())
    assert torch.equal(views[~sample.usable], whole[~sample.usable])


def test_foregrounds_move_with_their_images(sample: Sample) -> None:
    views, _ = sample.augment(foreground_share=1.0)
    pixels = (views * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255
    brightest = pixels.amax(dim=1).round()
    assert bool(((brightest == 0) | (brightest > 120)).all())  # bright, hence in the mask, or black
    assert (brightest > 120).any()


def test_images_of_any_shape(sample: Sample) -> None:
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
        ("foreground_share", -0.1),
    ],
)
def test_settings_out_of_bounds_are_named(name: str, value: float) -> None:
    with pytest.raises(PsysError, match=rf"setting '{name}'.*got {value}"):
        validate(AugmentConfig, {name: value}, where="flags")

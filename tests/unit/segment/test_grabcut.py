from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from psys.data.sample import read_sample
from psys.segment.grabcut import Box, SegmentConfig, segment
from psys.segment.quality import GateConfig, is_usable, measure
from tests.support.images import Image, Mask, pixels_of

STRATEGIES = [SegmentConfig(strategy=name) for name in ("auto", "seeded", "rect")]


@pytest.fixture(scope="module")
def images() -> Image:
    """50 real test images, five of each class."""
    return pixels_of(read_sample().test)[::10]


@pytest.fixture(scope="module")
def masks(images: Image) -> Mask:
    return np.stack([segment(image) for image in images])


def overlap(first: Mask, second: Mask) -> float:
    """Intersection over union."""
    return float((first & second).sum() / (first | second).sum())


def test_masks_of_real_images_are_rarely_degenerate(images: Image, masks: Mask) -> None:
    quality = np.array([measure(*pair) for pair in zip(images, masks, strict=True)], np.float32)

    assert is_usable(quality, GateConfig()).mean() >= 0.95
    assert 0.1 < np.median(quality[:, 0]) < 0.5


def test_foreground_colours_differ_from_the_border(images: Image, masks: Mask) -> None:
    """In most images the mean colour of the foreground differs more from the border's than that of the background."""
    separated = []
    for image, mask in zip(images.astype(float), masks, strict=True):
        border = np.ones((32, 32), np.bool_)
        border[3:-3, 3:-3] = False
        outside = image[border & ~mask].mean(axis=0)
        inside, rest = (
            np.linalg.norm(image[pixels].mean(axis=0) - outside) for pixels in (mask & ~border, ~mask & ~border)
        )
        separated.append(inside > rest)

    assert np.mean(separated) > 0.85


@pytest.mark.parametrize("config", STRATEGIES, ids=lambda config: config.strategy)
def test_every_strategy_finds_a_salient_object(images: Image, config: SegmentConfig) -> None:
    ball, meadow = images[45], cv2.resize(images[2, 8:24, 8:24], (160, 120)) // 3 + 150
    y, x = np.mgrid[:120, :160]
    truth = np.hypot(x - 90, y - 60) < 35
    scene = np.where(truth[..., None], cv2.resize(ball, (160, 120)) // 2, meadow).astype(np.uint8)

    assert overlap(segment(scene, config), truth) > 0.85


def test_object_within_the_box_is_found(images: Image) -> None:
    left, right = np.zeros((64, 96), np.bool_), np.zeros((64, 96), np.bool_)
    left[20:44, 10:36], right[16:48, 58:86] = True, True
    ground = np.full((64, 96, 3), 200, np.uint8)
    ground[left], ground[right] = (150, 20, 30), (20, 30, 150)
    scene = np.asarray(cv2.add(ground, cv2.resize(images[2], (96, 64)) // 8), np.uint8)

    for truth, box in ((left, Box(8, 18, 38, 46)), (right, Box(56, 14, 88, 50))):
        mask = segment(scene, box=box)
        assert overlap(mask, truth) > 0.9
        outside = np.ones_like(mask)
        outside[box.top - 2 : box.bottom + 2, box.left - 2 : box.right + 2] = False
        assert not (mask & outside).any()


def test_box_must_overlap_the_image(images: Image) -> None:
    assert segment(images[0], box=Box(-5, -5, 40, 40)).shape == (32, 32)
    for outside in (Box(40, 0, 50, 10), Box(5, 5, 5, 9), Box(-9, -9, -1, -1)):
        with pytest.raises(ValueError, match="expected a box"):
            segment(images[0], box=outside)


def test_scale_and_iterations_settings(images: Image) -> None:
    photograph = cv2.resize(images[0], (200, 150), interpolation=cv2.INTER_CUBIC)
    for config in (SegmentConfig(scale=0.5), SegmentConfig(iterations=3), SegmentConfig(strategy="rect", scale=0.5)):
        assert segment(photograph, config).shape == (150, 200)
    for wrong in ({"strategy": "magic"}, {"scale": 0}, {"iterations": 0}):
        with pytest.raises(ValidationError):
            SegmentConfig(**wrong)


def test_masks_are_deterministic(images: Image, masks: Mask) -> None:
    for index in (3, 20, 41):
        cv2.setRNGSeed(index)
        np.testing.assert_array_equal(segment(images[index]), masks[index])


def test_composited_object_is_found(images: Image) -> None:
    """An ellipse of one real texture on another real texture."""
    cloth, sky = (cv2.resize(images[index, 8:24, 8:24], (64, 64)) for index in (45, 2))
    y, x = np.mgrid[:64, :64]
    ellipse = ((x - 32) / 22) ** 2 + ((y - 30) / 13) ** 2 < 1
    scene = np.where(ellipse[..., None], cloth // 2, sky // 3 + 170).astype(np.uint8)

    assert overlap(segment(scene), ellipse) > 0.85


@pytest.mark.parametrize("size", [(32, 48), (96, 96), (240, 320), (500, 375)])
def test_masks_of_resized_images_are_similar(images: Image, masks: Mask, size: tuple[int, int]) -> None:
    overlaps = []
    for index in range(4, 50, 12):
        picture = cv2.resize(images[index], size[::-1], interpolation=cv2.INTER_CUBIC)
        mask = segment(picture)
        assert mask.shape == size
        small = cv2.resize(mask.astype(np.uint8), (32, 32), interpolation=cv2.INTER_AREA) > 0
        overlaps.append(overlap(small, masks[index]))

    assert np.mean(overlaps) > 0.6


def test_grey_images_are_segmented(images: Image) -> None:
    grey = [np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2) for image in images[::5]]

    for image in grey:
        assert 0.02 < segment(image).mean() < 0.95


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 80), width=st.integers(1, 80), value=st.integers(0, 255), seed=st.integers(0, 9))
def test_any_image_size_gives_a_mask(height: int, width: int, value: int, seed: int) -> None:
    flat = np.full((height, width, 3), value, np.uint8)
    noisy = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    for image in (flat, noisy):
        mask = segment(image)
        assert mask.shape == (height, width)
        assert mask.dtype == np.bool_


@pytest.mark.parametrize("size", [(1, 4000), (3000, 7), (2000, 1600)])
def test_extreme_image_sizes_give_a_mask(images: Image, size: tuple[int, int]) -> None:
    picture = cv2.resize(images[0], size[::-1])

    assert segment(picture).shape == size


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((32, 32, 3), np.float32),
        np.zeros((0, 32, 3), np.uint8),
        np.zeros((1, 32, 32, 3), np.uint8),
    ],
)
def test_other_shapes_and_dtypes_are_rejected(wrong: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="expected an RGB image"):
        segment(wrong)

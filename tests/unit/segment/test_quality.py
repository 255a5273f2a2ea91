import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from psys.segment.quality import GateConfig, Quality, is_usable, measure
from tests.support.images import Image, Mask


@pytest.fixture
def disc() -> Mask:
    """A disc with a radius of 20 pixels."""
    y, x = np.mgrid[:64, :64]
    return np.asarray(np.hypot(x - 31.5, y - 31.5) < 20)


def image_of(mask: Mask, inside: int = 200, outside: int = 40) -> Image:
    """An image with one grey level inside the mask and another outside."""
    return np.repeat(np.where(mask, inside, outside).astype(np.uint8)[..., None], 3, axis=2)


def test_quality_of_a_disc_of_another_colour(disc: Mask) -> None:
    quality = measure(image_of(disc), disc)

    assert quality.share == pytest.approx(np.pi * 20**2 / 64**2, abs=0.01)
    assert quality.border_contact == 0
    assert quality.compactness > 0.9
    assert quality.colour_separation == 1


def test_equal_colours_have_no_colour_separation(disc: Mask) -> None:
    noise = np.random.default_rng(0).integers(0, 60, (64, 64, 3), np.uint8)

    assert measure(image_of(disc, 90, 90), disc).colour_separation == pytest.approx(0)
    assert measure(noise, disc).colour_separation < 0.1


def test_fragments_and_lines_are_less_compact_than_a_disc(disc: Mask) -> None:
    line = np.zeros_like(disc)
    line[30:33, 4:60] = True
    fragments = np.zeros_like(disc)
    fragments[::4, ::4] = True

    values = [measure(image_of(mask), mask).compactness for mask in (disc, line, fragments)]
    assert values[0] > 2 * values[1] > 2 * values[2]


def test_border_contact_is_the_share_of_border_pixels() -> None:
    mask = np.zeros((10, 20), np.bool_)
    mask[:, :10] = True

    assert measure(image_of(mask), mask).border_contact == pytest.approx((10 + 10 + 8) / (20 + 20 + 8 + 8))


@pytest.mark.parametrize(("value", "expected"), [(False, (0, 0)), (True, (1, 1))])
def test_quality_of_empty_and_full_masks(value: bool, expected: tuple[int, int]) -> None:
    mask = np.full((8, 8), value)
    quality = measure(image_of(mask), mask)

    assert quality[:2] == expected
    assert quality.colour_separation == 0
    assert all(0 <= metric <= 1 for metric in quality)


def test_quality_is_invariant_to_flip_and_scale(disc: Mask) -> None:
    mask = disc.copy()
    mask[:20] = False
    image = np.asarray(cv2.GaussianBlur(image_of(mask), (5, 5), 0), np.uint8)
    larger_image = image.repeat(2, axis=0).repeat(2, axis=1)
    larger_mask = mask.repeat(2, axis=0).repeat(2, axis=1)

    assert measure(image[:, ::-1], mask[:, ::-1]) == pytest.approx(measure(image, mask), rel=1e-6)
    assert measure(larger_image, larger_mask) == pytest.approx(measure(image, mask), abs=0.02)


def test_mask_of_another_size_is_rejected(disc: Mask) -> None:
    with pytest.raises(ValueError, match="mask of the image's size"):
        measure(image_of(disc)[:32], disc)


def metrics(**changed: float) -> NDArray[np.float32]:
    return np.array(Quality(0.3, 0.1, 0.5, 0.8)._replace(**changed), np.float32)


@pytest.mark.parametrize(
    ("gate", "name", "values"),
    [
        ({}, "share", {0: False, 0.0199: False, 0.02: True, 0.5: True, 0.9499: True, 0.951: False, 1: False}),
        ({}, "border_contact", {0: True, 0.9: True, 0.91: False}),
        ({"max_border_contact": 0.5}, "border_contact", {0.5: True, 0.6: False}),
        ({"min_compactness": 0.2}, "compactness", {0.1: False, 0.3: True}),
        ({"min_colour_separation": 0.25}, "colour_separation", {0.1: False, 0.3: True}),
    ],
)
def test_gate_limits_every_metric(gate: dict[str, float], name: str, values: dict[float, bool]) -> None:
    quality = np.stack([metrics(**{name: value}) for value in values])

    assert is_usable(quality, GateConfig(**gate)).tolist() == list(values.values())


def test_invalid_gate_limits_are_rejected() -> None:
    with pytest.raises(ValidationError, match="min_share"):
        GateConfig(min_share=0.9, max_share=0.1)
    with pytest.raises(ValidationError):
        GateConfig(min_compactness=2)


def test_gate_accepts_an_empty_batch() -> None:
    assert is_usable(np.empty((0, 4), np.float32), GateConfig()).shape == (0,)

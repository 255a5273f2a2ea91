"""How `auto` tells good cuts from bad ones."""

import numpy as np
import pytest

from benchmarks.segment_fit import Cuts, fit
from psys.data.sample import read_sample
from psys.segment.auto import WEIGHTS, Judge, find, maps_of


@pytest.fixture(scope="module")
def square() -> tuple[np.ndarray, np.ndarray]:
    """A detailed piece of a real image in the middle of a plain one, and its mask."""
    sample = read_sample().test.images
    image = np.full((32, 32, 3), 200, np.uint8)
    image[10:22, 10:22] = sample[45, 10:22, 10:22] // 2
    mask = np.zeros((32, 32), np.bool_)
    mask[10:22, 10:22] = True
    return image, mask


def score(figures: Figures) -> float:
    return float(np.dot(WEIGHTS, figures))


def test_features_of_the_true_mask(square: tuple[Image, Mask]) -> None:
    image, mask = square
    figures = Judge(image, maps_of(image), [mask]).figures(mask)

    assert figures.agreement == pytest.approx(1)
    assert figures.largest_part == 1
    assert figures.off_centre == pytest.approx(0)
    assert figures.edges_outside == 0
    assert figures.doubtful == 0
    assert figures.surroundings < -3
    assert figures.outline > 0.8
    assert figures.detail > 0.7
    assert figures.rarity > 0.5


def test_true_mask_has_the_highest_score(square: tuple[Image, Mask]) -> None:
    image, mask = square
    half, in_parts, moved = mask.copy(), mask.copy(), np.roll(mask, 6, axis=1)
    half[16:] = False
    in_parts[15:17] = False
    large = np.zeros_like(mask)
    large[4:28, 4:28] = True
    cuts = [mask, half, in_parts, moved, large]
    judge = Judge(image, maps_of(image), cuts)

    assert np.argmax([score(judge.figures(cut)) for cut in cuts]) == 0


@pytest.mark.parametrize("shape", [(32, 32, 3), (16, 90, 3), (17, 16, 3)])
def test_image_of_one_colour_has_a_mask(shape: tuple[int, ...]) -> None:
    with np.errstate(all="raise"):
        assert find(np.full(shape, 90, np.uint8), 1).shape == shape[:2]


def test_fit_recovers_the_true_weights() -> None:
    generator = np.random.default_rng(0)
    weights = np.array(WEIGHTS)
    images = []
    for number in range(400):
        figures = generator.normal(size=(10, len(weights)))
        # What is better in all cuts of one image than in those of another does not count.
        images.append(Cuts(figures, figures @ weights + generator.normal(), number % 5))

    assert fit(images) == pytest.approx(weights, abs=0.02)

"""Features and scores of cuts in the `auto` strategy."""

import numpy as np
import pytest

from benchmarks.segment_fit import Cuts, fit
from psys.data.sample import read_sample
from psys.segment.auto import WEIGHTS, CutFeatures, FeatureExtractor, find, maps_of
from tests.support.images import Image, Mask, pixels_of


@pytest.fixture(scope="module")
def square() -> tuple[Image, Mask]:
    """An image with a detailed square at the centre of a plain background, and the mask of the square."""
    sample = pixels_of(read_sample().test)
    image = np.full((32, 32, 3), 200, np.uint8)
    image[10:22, 10:22] = sample[45, 10:22, 10:22] // 2
    mask = np.zeros((32, 32), np.bool_)
    mask[10:22, 10:22] = True
    return image, mask


def score(features: CutFeatures) -> float:
    return float(np.dot(WEIGHTS, features))


def test_features_of_the_true_mask(square: tuple[Image, Mask]) -> None:
    image, mask = square
    features = FeatureExtractor(image, maps_of(image), [mask]).features(mask)

    assert features.agreement == pytest.approx(1)
    assert features.largest_part == 1
    assert features.off_centre == pytest.approx(0)
    assert features.edges_outside == 0
    assert features.doubtful == 0
    assert features.surroundings < -3
    assert features.outline > 0.8
    assert features.detail > 0.7
    assert features.rarity > 0.5


def test_true_mask_has_the_highest_score(square: tuple[Image, Mask]) -> None:
    image, mask = square
    half, in_parts, moved = mask.copy(), mask.copy(), np.roll(mask, 6, axis=1)
    half[16:] = False
    in_parts[15:17] = False
    large = np.zeros_like(mask)
    large[4:28, 4:28] = True
    cuts = [mask, half, in_parts, moved, large]
    extractor = FeatureExtractor(image, maps_of(image), cuts)

    assert np.argmax([score(extractor.features(cut)) for cut in cuts]) == 0


@pytest.mark.parametrize("shape", [(32, 32, 3), (16, 90, 3), (17, 16, 3)])
def test_image_of_one_colour_has_a_mask(shape: tuple[int, ...]) -> None:
    with np.errstate(all="raise"):
        assert find(np.full(shape, 90, np.uint8), 1).shape == shape[:2]


def test_fit_recovers_the_true_weights() -> None:
    generator = np.random.default_rng(0)
    weights = np.array(WEIGHTS)
    images = []
    for number in range(400):
        features = generator.normal(size=(10, len(weights)))
        # A constant difference between images must not matter.
        images.append(Cuts(features, features @ weights + generator.normal(), number % 5))

    assert fit(images) == pytest.approx(weights, abs=0.02)

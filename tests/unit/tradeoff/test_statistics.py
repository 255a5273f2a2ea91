"""Intervals, tests and claims against answers by hand, and their error rates over 500 simulated studies."""

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from psys.tradeoff.statistics import (
    Difference,
    claims,
    difference,
    difference_of_figures,
    holm,
    ratio,
    summarize,
)

STUDIES = 500
# A test image is right if a normal sum of these effects is positive. SDs; images differ most, and in part by arm.
IMAGE, SEED, SEED_AND_ARM, IMAGE_AND_ARM, REST = 1.0, 0.03, 0.04, 0.35, 0.7
MEAN = 0.5
SPREAD = math.hypot(IMAGE, SEED, SEED_AND_ARM, IMAGE_AND_ARM, REST)


def true_accuracy(effect: float) -> float:
    return NormalDist(0, SPREAD).cdf(MEAN + effect)


def simulated_studies(effects: Sequence[float], seeds: int, images: int) -> Iterator[NDArray[np.bool_]]:
    """Right/wrong bits (arms, seeds, images) of studies with new seeds and new images each; one effect for each arm."""
    rng = np.random.default_rng(25)
    arms = len(effects)
    for _ in range(STUDIES):
        sum_of_effects = (
            MEAN
            + np.reshape(effects, (arms, 1, 1))
            + rng.normal(0, IMAGE, (1, 1, images))
            + rng.normal(0, SEED, (1, seeds, 1))
            + rng.normal(0, SEED_AND_ARM, (arms, seeds, 1))
            + rng.normal(0, IMAGE_AND_ARM, (arms, 1, images))
            + REST * rng.standard_normal((arms, seeds, images), dtype=np.float32)
        )
        yield sum_of_effects > 0


def covers(paired: Difference, truth: float) -> bool:
    assert paired.interval is not None
    return paired.interval[0] <= truth <= paired.interval[1]


@pytest.mark.parametrize(("seeds", "images"), [(5, 1000), (10, 500)])
def test_interval_covers_a_planted_effect_in_95_percent_of_studies(seeds: int, images: int) -> None:
    truth = true_accuracy(0.13) - true_accuracy(0)
    assert 0.03 < truth < 0.04
    of_bits, of_seeds = [], []
    for reference, arm in simulated_studies((0, 0.13), seeds, images):
        of_bits.append(difference(arm, reference))
        of_seeds.append(difference_of_figures(arm.mean(axis=1), reference.mean(axis=1)))
    assert 0.93 <= np.mean([covers(paired, truth) for paired in of_bits]) <= 0.97
    assert np.mean([paired.mean for paired in of_bits]) == pytest.approx(truth, abs=0.002)
    assert np.mean([covers(paired, truth) for paired in of_seeds]) < 0.93  # the seeds share the images


def test_no_effect_is_claimed_in_at_most_5_percent_of_studies() -> None:
    studies = simulated_studies((0, 0), 5, 1000)
    verdicts = [claims({"arm": difference(arm, reference)})["arm"].verdict for reference, arm in studies]
    assert np.mean([verdict != "undecided" for verdict in verdicts]) <= 0.05


def test_no_effect_of_any_of_six_arms_is_claimed_in_at_most_5_percent_of_studies() -> None:
    false = 0
    for reference, *arms in simulated_studies([0] * 7, 5, 500):
        made = claims({str(index): difference(arm, reference) for index, arm in enumerate(arms)})
        false += any(claim.verdict != "undecided" for claim in made.values())
    assert false / STUDIES <= 0.05


def test_loss_of_the_margin_is_called_equivalent_in_at_most_5_percent_of_studies() -> None:
    margin = true_accuracy(0) - true_accuracy(-0.13)
    studies = simulated_studies((0, -0.13), 5, 1000)
    verdicts = [claims({"arm": difference(arm, reference)}, margin)["arm"].verdict for reference, arm in studies]
    assert np.mean([verdict == "equivalent" for verdict in verdicts]) <= 0.05


def test_large_effect_is_claimed_and_no_effect_is_equivalent_within_a_wide_margin() -> None:
    for (reference, better, same), _ in zip(simulated_studies((0, 0.6, 0), 6, 1000), range(5), strict=False):
        made = claims({"better": difference(better, reference), "same": difference(same, reference)}, margin=0.1)
        assert {arm: claim.verdict for arm, claim in made.items()} == {"better": "better", "same": "equivalent"}
        assert made["same"].text == "equivalent within 10 points"
        assert claims({"reference": difference(reference, better)})["reference"].verdict == "worse"


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_three_seeds_make_no_claim(seeds: int) -> None:
    right, wrong = np.ones((seeds, 1000), bool), np.zeros((seeds, 1000), bool)
    for arm in (right, wrong):
        (claim,) = claims({"arm": difference(arm, wrong)}, margin=0.5).values()
        assert claim.text == "undecided: too few seeds for a claim on accuracy"
        assert (claim.verdict, claim.p, claim.p_equivalent) == ("undecided", None, None)


def test_arms_with_too_few_seeds_do_not_count_in_the_correction() -> None:
    four = Difference(0.05, 0.01, 3, seeds=4, images=100)
    three = Difference(0.05, 0.01, 2, seeds=3, images=100)
    assert claims({"a": four, "b": three})["a"].p == claims({"a": four})["a"].p


def test_equal_bits_are_equivalent_and_not_different() -> None:
    bits = np.random.default_rng(1).random((4, 100)) > 0.4
    paired = difference(bits, bits)
    assert (paired.mean, paired.se, paired.interval, paired.p_greater()) == (0, 0, (0, 0), 0.5)
    (claim,) = claims({"arm": paired}, margin=0.01).values()
    assert (claim.verdict, claim.text, claim.p, claim.p_equivalent) == (
        "equivalent",
        "equivalent within 1 point",
        1,
        0,
    )


def test_holm_corrects_equivalence_over_arms() -> None:
    # One-sided p of the worse side: t = 2.2 with 9 degrees of freedom, p = 0.028. Two such arms have 0.055.
    paired = Difference(0.0, 0.01 / 2.2, 9, seeds=10, images=1000)
    assert claims({"a": paired}, 0.01)["a"].verdict == "equivalent"
    assert {claim.verdict for claim in claims({"a": paired, "b": paired}, 0.01).values()} == {"undecided"}


def test_summary_equals_the_t_interval_by_hand() -> None:
    five = summarize([1, 2, 3, 4, 5])
    half = 2.7764451 * math.sqrt(2.5) / math.sqrt(5)
    assert (five.seeds, five.mean) == (5, 3)
    assert (five.sd, five.low, five.high) == pytest.approx((math.sqrt(2.5), 3 - half, 3 + half))


def test_one_seed_has_no_interval() -> None:
    one = summarize([0.6])
    assert (one.seeds, one.mean, one.sd, one.low, one.high) == (1, 0.6, None, None, None)
    assert ratio([2], [1]).low is None
    for paired in (difference_of_figures([2], [1]), difference([[True, True]], [[True, False]])):
        assert (paired.se, paired.df, paired.interval, paired.p_greater()) == (None, None, None, None)


def test_difference_equals_the_two_way_analysis_of_variance_by_hand() -> None:
    # Means of seeds 1/2 and 1/4, of images 1, 1/2, 0, 0; sums of squares: seeds 1/8, images 11/8, rest 3/8.
    paired = difference([[True, True, False, False], [True, False, False, False]], np.zeros((2, 4), bool))
    seed, image, rest = 1 / 8, 11 / 24, 1 / 8
    assert paired.mean == 3 / 8
    assert paired.se == pytest.approx(math.sqrt((seed + image - rest) / 8))
    share = seed / (seed + image - rest)
    assert paired.df == pytest.approx(1 / (share / 1 + (1 - share) / 3))


def test_difference_without_image_noise_is_the_t_interval_of_the_seeds() -> None:
    arm = np.array([[True, True, False], [False, False, True]])  # each image right once: images do not differ
    of_bits = difference(arm, np.zeros((2, 3), bool))
    of_seeds = difference_of_figures([2 / 3, 1 / 3], [0, 0])
    assert (of_bits.mean, of_bits.se, of_bits.df) == pytest.approx((of_seeds.mean, of_seeds.se, of_seeds.df))


def test_same_bits_in_all_seeds_leave_the_noise_of_images() -> None:
    one = np.random.default_rng(2).random(400) > 0.4
    paired = difference(np.tile(one, (5, 1)), np.ones((5, 400), bool))
    assert paired.se == pytest.approx(np.std(one, ddof=1) / 20)


def test_p_greater_and_the_interval_agree() -> None:
    paired = difference_of_figures([3, 5, 4, 6], [1, 2, 3, 1])
    assert paired.interval is not None
    assert paired.p_greater(paired.interval[0]) == pytest.approx(0.975)
    assert paired.p_greater(paired.interval[1]) == pytest.approx(0.025)


def test_ratio_is_the_geometric_mean_and_inverts() -> None:
    half = ratio([1, 2, 8], [2, 4, 16])
    assert (half.mean, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
    speed, time = ratio([2, 3, 5], [1, 1, 1]), ratio([1, 1, 1], [2, 3, 5])
    assert speed.mean == pytest.approx(30 ** (1 / 3))
    assert speed.low is not None
    assert time.high == pytest.approx(1 / speed.low)


def test_holm_equals_the_example_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("arm", "reference", "message"),
    [
        (np.ones((3, 9), bool), np.ones((2, 9), bool), "paired"),
        (np.ones(9, bool), np.ones(9, bool), "paired"),
        (np.ones((3, 9)), np.ones((3, 9)), "bool"),
        (np.ones((0, 9), bool), np.ones((0, 9), bool), "one seed"),
        (np.ones((3, 1), bool), np.ones((3, 1), bool), "two test images"),
    ],
)
def test_unpaired_or_empty_bits_are_refused(arm: ArrayLike, reference: ArrayLike, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        difference(arm, reference)


def test_unpaired_empty_and_infinite_figures_are_refused() -> None:
    for figures in ([], [math.nan], [[1.0]]):
        with pytest.raises(ValueError, match="a figure over seeds is"):
            summarize(figures)
    with pytest.raises(ValueError, match="paired by seed; got 2 and 1"):
        difference_of_figures([1, 2], [1])
    with pytest.raises(ValueError, match="positive"):
        ratio([1, 0], [1, 1])
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([1.5])


def test_claims_refuse_a_margin_in_points_and_differences_without_bits() -> None:
    with pytest.raises(ValueError, match="a share between 0 and 1; got 2"):
        claims({}, margin=2)
    with pytest.raises(ValueError, match="missing for slow"):
        claims({"slow": difference_of_figures([1, 2], [1, 1])})

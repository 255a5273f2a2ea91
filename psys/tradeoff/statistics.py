"""What a study of arms x seeds says about accuracy: intervals, differences to a reference arm, and claims.

Accuracies, differences and margins are shares: 0.01 is one percentage point. All intervals have 95 % confidence.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit  # Student's t distribution and its inverse

from psys.tradeoff.words import margin_name

LEVEL = 0.95
SEEDS_FOR_A_CLAIM = 4
"""With three seeds even a test that is exact without assumptions, by changes of sign, cannot go below p = 0.25."""

Verdict = Literal["better", "worse", "equivalent", "undecided"]
ArmT = TypeVar("ArmT", bound=Hashable)


@dataclass(frozen=True)
class Summary:
    """A figure over seeds. `sd` (n - 1 in the denominator) and the interval of the mean are None for one seed.

    The interval holds the noise of seeds only: all seeds share their test images, whose choice it does not cover.
    """

    seeds: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """An arm minus the reference arm, paired by seed, with the standard error and degrees of freedom of the mean.

    `images` is None if the difference was made from one figure for each seed: the choice of test images is then not
    covered. With one seed there is no standard error: `se`, `df`, `interval` and `p_greater` are None.
    """

    mean: float
    se: float | None
    df: float | None
    seeds: int
    images: int | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The t-interval of the difference."""
        if self.se is None or self.df is None:
            return None
        half = float(stdtrit(self.df, (1 + LEVEL) / 2)) * self.se
        return self.mean - half, self.mean + half

    def p_greater(self, than: float = 0.0) -> float | None:
        """Confidence that the true difference is above `than`; of accuracies and 0: P(arm better than reference).

        1 - p_greater(d) is the p-value of the one-sided t-test against "the difference is at most d". The value is also
        the posterior probability under a flat prior.
        """
        if self.se is None or self.df is None:
            return None
        if self.se == 0:
            return 0.5 if self.mean == than else float(self.mean > than)
        return float(stdtr(self.df, (self.mean - than) / self.se))


@dataclass(frozen=True)
class Ratio:
    """The geometric mean over seeds of arm / reference; the interval is None for one seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class Claim:
    """What may be said of an arm against the reference arm, in words and as a verdict.

    `p` is the two-sided p-value of a difference, `p_equivalent` the p-value of the equivalence test, both after Holm's
    correction; None where no test was made.
    """

    verdict: Verdict
    text: str
    p: float | None = None
    p_equivalent: float | None = None


def summarize(figures: ArrayLike) -> Summary:
    """Mean, SD and Student's t-interval of a figure over seeds. ValueError if there is none or one is not finite."""
    values = _figures(figures)
    mean = float(values.mean())
    if len(values) == 1:
        return Summary(1, mean, None, None, None)
    sd = float(values.std(ddof=1))
    half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * sd / math.sqrt(len(values))
    return Summary(len(values), mean, sd, mean - half, mean + half)


def difference(arm: ArrayLike, reference: ArrayLike) -> Difference:
    """The difference in accuracy of two arms from their right/wrong bits, for new seeds and new test images.

    arm, reference: bool (seeds, images); row s of both has the same seed, column i the same test image.
    ValueError if they are empty, differ in shape, are not bool, or hold fewer than two images.

    The differences of bits follow a two-way crossed random model, D[s, i] = mean + seed[s] + image[i] + rest[s, i]. All
    seeds share the test images, so the effects of images do not average out over seeds, and a t-interval of the seeds'
    differences covers too little. With the mean squares MS of the two-way analysis of variance, S seeds and I images,

        variance of the mean = (MS_seed + max(MS_image - MS_rest, 0)) / (S I),

    of which a share w comes from seeds. Dorfman, Berbaum and Metz (1992) and Hillis, Statistics in Medicine 26 (2007),
    596-619, use it for readers x cases; Searle, Casella and McCulloch, Variance Components (1992), derive it.
    The degrees of freedom are

        1 / df = w / (S - 1) + (1 - w) / (I - 1),

    which makes the quantile, to first order in 1 / df, the mean of the two components' quantiles weighted by their
    variances: Cochran, Biometrics 20 (1964), 191-195. Satterthwaite's approximation, with w squared, covers too little
    at few seeds (down to 94.2 % at 5 seeds, 92.2 % at 3; here 95.0 to 96.0 % at 5, at least 94.3 % at 3).
    """
    bits, reference_bits = np.asarray(arm), np.asarray(reference)
    if bits.shape != reference_bits.shape or bits.ndim != 2:
        raise ValueError(
            f"right/wrong bits are paired arrays (seeds, images); got shapes {bits.shape} and {reference_bits.shape}"
        )
    if bits.dtype != np.bool_ or reference_bits.dtype != np.bool_:
        raise ValueError(f"right/wrong bits are bool; got {bits.dtype} and {reference_bits.dtype}")
    seeds, images = bits.shape
    if seeds == 0 or images < 2:
        raise ValueError(f"a difference needs one seed and two test images; got {seeds} and {images}")
    paired = bits.astype(np.float64) - reference_bits
    mean = float(paired.mean())
    if seeds == 1:
        return Difference(mean, None, None, 1, images)
    by_seed, by_image = paired.mean(axis=1, keepdims=True), paired.mean(axis=0, keepdims=True)
    rest = paired - by_seed - by_image + mean
    of_seeds = images * float(np.var(by_seed, ddof=1))
    of_images = max(
        0.0, seeds * float(np.var(by_image, ddof=1)) - float(np.square(rest).sum()) / ((seeds - 1) * (images - 1))
    )
    total = of_seeds + of_images
    share = of_seeds / total if total else 1.0
    df = 1 / (share / (seeds - 1) + (1 - share) / (images - 1))
    return Difference(mean, math.sqrt(total / (seeds * images)), df, seeds, images)


def difference_of_figures(arm: ArrayLike, reference: ArrayLike) -> Difference:
    """The paired t-interval of any figure, one for each seed in the same order (seconds, images/s, loss).

    The interval holds the noise of seeds only. ValueError if a figure is missing or not finite.
    """
    values, reference_values = _paired_figures(arm, reference)
    paired = summarize(values - reference_values)
    if paired.sd is None:
        return Difference(paired.mean, None, None, 1, None)
    return Difference(paired.mean, paired.sd / math.sqrt(paired.seeds), paired.seeds - 1, paired.seeds, None)


def ratio(arm: ArrayLike, reference: ArrayLike) -> Ratio:
    """How many times the reference's figure the arm's is: of seconds, 0.5 is half the time. Paired by seed.

    The t-interval of the differences of logarithms. ValueError if a figure is missing, not finite or not positive.
    """
    values, reference_values = _paired_figures(arm, reference)
    if min(values.min(), reference_values.min()) <= 0:
        raise ValueError("a ratio needs positive figures")
    logs = summarize(np.log(values) - np.log(reference_values))
    if logs.low is None or logs.high is None:
        return Ratio(math.exp(logs.mean), None, None, logs.seeds)
    return Ratio(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.seeds)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number: those below 0.05 hold a false one in at most 5 % of studies.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979), 65-70. ValueError if a value is outside 0 to 1.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values lie between 0 and 1; got {list(p_values)}")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return adjusted


def claims(differences: Mapping[ArmT, Difference], margin: float | None = None) -> dict[ArmT, Claim]:
    """What may be said of the accuracy of each arm, given all `differences` of a study to the reference arm.

    "better" or "worse" if the two-sided t-test rejects "no difference"; otherwise "equivalent" if two one-sided tests
    reject a difference of `margin` or more in either direction (Schuirmann, 1987); otherwise "undecided". Either family
    of tests is corrected over the arms by Holm's method, and a family makes a false claim in at most 5 % of studies.
    `margin` is a share, fixed before the study; None makes no test of equivalence. Arms with fewer than
    `SEEDS_FOR_A_CLAIM` seeds are undecided and not tested. ValueError if the margin is not between 0 and 1, or if a
    difference was not made from right/wrong bits.
    """
    if margin is not None and not 0 < margin < 1:
        raise ValueError(f"a margin of equivalence is a share between 0 and 1; got {margin}")
    if unfit := [arm for arm, paired in differences.items() if paired.images is None]:
        raise ValueError(
            f"a claim on accuracy needs right/wrong bits per test image; missing for {', '.join(map(str, unfit))}"
        )
    tested = {arm: paired for arm, paired in differences.items() if paired.seeds >= SEEDS_FOR_A_CLAIM}
    two_sided = dict(zip(tested, holm([_p_two_sided(paired) for paired in tested.values()]), strict=True))
    equivalent: dict[ArmT, float] = {}
    if margin is not None:
        p_values = [_p_equivalent(paired, margin) for paired in tested.values()]
        equivalent = dict(zip(tested, holm(p_values), strict=True))
    return {arm: _claim(paired, two_sided.get(arm), equivalent.get(arm), margin) for arm, paired in differences.items()}


def _claim(paired: Difference, p: float | None, p_equivalent: float | None, margin: float | None) -> Claim:
    if p is None:
        return Claim("undecided", "undecided: too few seeds for a claim on accuracy")
    if p < 1 - LEVEL:
        verdict: Verdict = "better" if paired.mean > 0 else "worse"
        return Claim(verdict, verdict, p, p_equivalent)
    if margin is not None and p_equivalent is not None and p_equivalent < 1 - LEVEL:
        return Claim("equivalent", f"equivalent within {margin_name(margin)}", p, p_equivalent)
    return Claim("undecided", "undecided", p, p_equivalent)


def _p_two_sided(paired: Difference) -> float:
    p = _confidence(paired, 0.0)
    return 2 * min(p, 1 - p)


def _p_equivalent(paired: Difference, margin: float) -> float:
    """The p-value of two one-sided tests against a difference of -margin or less, and of margin or more."""
    return max(1 - _confidence(paired, -margin), _confidence(paired, margin))


def _confidence(paired: Difference, than: float) -> float:
    p = paired.p_greater(than)
    if p is None:
        raise ValueError("a test needs two seeds")
    return p


def _figures(figures: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(figures, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError("a figure over seeds is a list of one number for each seed; it is empty or not a list")
    if not np.isfinite(values).all():
        raise ValueError(f"a figure over seeds is finite; got {values.tolist()}")
    return values


def _paired_figures(arm: ArrayLike, reference: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, reference_values = _figures(arm), _figures(reference)
    if len(values) != len(reference_values):
        raise ValueError(f"figures are paired by seed; got {len(values)} and {len(reference_values)}")
    return values, reference_values

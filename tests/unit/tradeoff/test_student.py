"""Student's t distribution against tables, closed forms and its limits."""

import math
from statistics import NormalDist

import pytest

from psys.tradeoff import student


@pytest.mark.parametrize(
    ("p", "df", "t"),
    [
        (0.975, 1, 12.7062047),
        (0.975, 2, 4.3026527),
        (0.975, 4, 2.7764451),
        (0.975, 9, 2.2621572),
        (0.95, 5, 2.0150484),
        (0.995, 30, 2.7499957),
        (0.9999, 1, 3183.0988),
    ],
)
def test_quantiles_equal_the_table(p: float, df: float, t: float) -> None:
    assert student.quantile(p, df) == pytest.approx(t, rel=1e-7)


@pytest.mark.parametrize("t", [-300.0, -2.0, -0.1, 0.0, 0.3, 1.0, 7.0, 1e8])
def test_cdf_equals_the_closed_forms_of_one_and_two_degrees_of_freedom(t: float) -> None:
    assert student.cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-12)
    assert student.cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-12)


@pytest.mark.parametrize("df", [1.0, 1.7, 2.31, 4.5, 33.3, 1e3, 1e5])
@pytest.mark.parametrize("p", [0.5001, 0.9, 0.975, 0.9996])
def test_quantile_is_the_inverse_of_cdf(p: float, df: float) -> None:
    assert student.cdf(student.quantile(p, df), df) == pytest.approx(p, abs=1e-9)


def test_many_degrees_of_freedom_approach_the_normal_distribution() -> None:
    for t in (-2.0, 0.5, 3.0):
        assert student.cdf(t, 1e5) == pytest.approx(NormalDist().cdf(t), abs=1e-5)


def test_infinite_t_is_certain() -> None:
    assert (student.cdf(-math.inf, 3), student.cdf(math.inf, 3)) == (0, 1)

"""Student's t distribution for any number of degrees of freedom, without SciPy."""

import math
from statistics import NormalDist


def cdf(t: float, df: float) -> float:
    """P(T <= t) for T of Student's t distribution with `df` > 0 degrees of freedom, by the incomplete beta function.

    Source: Abramowitz and Stegun 26.7.1, NIST DLMF 8.17. Absolute error about 1e-10 up to 100,000 degrees of freedom.
    """
    if t == 0:
        return 0.5
    squared = t * t
    outside = (
        0.0 if math.isinf(squared) else _incomplete_beta(df / (df + squared), squared / (df + squared), df / 2, 0.5)
    )
    return outside / 2 if t < 0 else 1 - outside / 2


def quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, for 0.5 < p < 1.

    Newton's method from the normal quantile: `cdf` is concave on t > 0 and the normal quantile lies below the result,
    so each step approaches the result from below.
    """
    t = NormalDist().inv_cdf(p)
    log_scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - math.log(df * math.pi) / 2
    for _ in range(100):
        density = math.exp(log_scale - (df + 1) / 2 * math.log1p(t * t / df))
        step = (p - cdf(t, df)) / density
        t += step
        if abs(step) <= 1e-10 * t:
            break
    return t


def _incomplete_beta(x: float, rest: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b); `rest` is 1 - x, which keeps its digits if it is small."""
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # here the continued fraction converges slowly
        return 1 - _incomplete_beta(rest, x, b, a)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = math.exp(a * math.log(x) + b * math.log(rest) - log_beta) / a
    return front / _continued_fraction(x, a, b)


def _continued_fraction(x: float, a: float, b: float) -> float:
    """1 + d1 / (1 + d2 / (1 + ...)) of DLMF 8.17.22, evaluated from the front by Lentz's method."""
    value = upper = 1.0
    lower = 0.0
    for k in range(1, 10_000):
        m = k // 2
        if k % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        lower = 1 / (1 + d * lower)
        upper = 1 + d / upper
        value *= upper * lower
        if abs(upper * lower - 1) < 1e-15:
            break
    return value

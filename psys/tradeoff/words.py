"""Figures of a study in words: numbers with their units, intervals, lists."""

from collections.abc import Sequence
from dataclasses import dataclass

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Unit:
    """How figures of a kind are written: times `factor`, with so many decimals."""

    name: str
    factor: float = 1.0
    decimals: int = 1

    def number(self, value: float) -> str:
        """Without the unit's name, as where it was named before."""
        return f"{self.factor * value:,.{self.decimals}f}"

    def text(self, value: float) -> str:
        """A number and its unit: 58.3 %."""
        return f"{self.number(value)} {self.name}".rstrip()


PERCENT = Unit("%", 100)
IMAGES_PER_SECOND = Unit("images/s", decimals=0)


def seconds_unit(seconds: float) -> Unit:
    """The unit that suits a time in seconds."""
    if seconds < 600:
        return Unit("s", decimals=1 if seconds < 100 else 0)
    return Unit("min", 1 / 60) if seconds < 7200 else Unit("h", 1 / 3600, 2)


def hours_unit(hours: float) -> Unit:
    """The unit that suits worker-hours."""
    return Unit("h", decimals=4 if hours < 0.1 else 2)


def percent(share: float) -> str:
    """A share as a percentage with one decimal: 58.3 %."""
    return PERCENT.text(share)


def target_name(share: float) -> str:
    """A target accuracy as a percentage: 60 %."""
    return f"{100 * share:g} %"


def level_name(level: float) -> str:
    """A confidence level: 93.75 %."""
    return f"{100 * level:.4g} %"


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign: +1.2."""
    return f"{100 * share:+.1f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    return seconds_unit(seconds).text(seconds)


def margin_name(share: float) -> str:
    """A margin in percentage points: 1 point."""
    return f"{100 * share:g} {'point' if share == 0.01 else 'points'}"


def times(ratio: float) -> str:
    """A ratio: 2.13."""
    return f"{ratio:.2f}"


def confidence(p: float) -> str:
    """A confidence as a percentage, which is never said to be 0 or 100 %."""
    return "> 99.9 %" if p > 0.999 else "< 0.1 %" if p < 0.001 else percent(p)


def p_value(p: float) -> str:
    """A p-value: p = 0.012."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number and a noun: 3 seeds, 1 seed."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def in_letters(number: int) -> str:
    """A number up to ten in letters, a larger one in digits."""
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def join(names: Sequence[object]) -> str:
    """A list with commas and "and"."""
    texts = [str(name) for name in names]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)

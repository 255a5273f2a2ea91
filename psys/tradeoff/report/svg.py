"""Charts as inline SVG, in pixels: frames with axes, lines, bands, marks with read-outs, and rows of bars.

Colours are the classes of the page's style sheet: an element of arm i lies in a group of class `arm<i>`. Arms differ in
colour, dash and marker, so that no one of the three is needed to tell them apart.
"""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import pairwise
from math import log as logarithm

from matplotlib.ticker import LogLocator, MaxNLocator

COLOURS = 7
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2")
MARKERS = (  # paths of about the same area around the origin
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
    "M-3.6 -3.6H3.6V3.6H-3.6Z",
    "M0 -4.8L4.6 3.6H-4.6Z",
    "M0 -5.2L4.6 0L0 5.2L-4.6 0Z",
    "M0 4.8L4.6 -3.6H-4.6Z",
    "M-4.5 -1.5H-1.5V-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5Z",
)
CHARACTER = 6.9
"""Width of a character of 12 pixels, as far as layout needs it"""

Point = tuple[float, float]


class Scale:
    """A linear or logarithmic axis from values to pixels."""

    def __init__(self, values: Iterable[float], start: float, end: float, *, log: bool = False) -> None:
        finite = list(values) or [0.0, 1.0]
        low, high = min(finite), max(finite)
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10)
        self.low, self.high, self.start, self.end, self._log = low, high, start, end, log

    def __call__(self, value: float) -> float:
        if self._log:
            share = logarithm(value / self.low) / logarithm(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, pixels: float) -> list[float]:
        """Round values about `pixels` apart."""
        number = max(2, int(abs(self.end - self.start) / pixels))
        linear = MaxNLocator(number, steps=[1, 2, 2.5, 5, 10])
        values = (LogLocator(subs=(1, 2, 5), numticks=99) if self._log else linear).tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        return [float(value) for value in values if self.low - slack <= value <= self.high + slack]


Format = Callable[[float], str]


class Chart:
    """A frame with two axes, to which elements of arms are added."""

    def __init__(
        self,
        size: tuple[int, int],
        x: Iterable[float],
        y: Iterable[float],
        labels: tuple[str, str],
        formats: tuple[Format, Format],
        *,
        x_ticks: Sequence[float] = (),
    ) -> None:
        """x_ticks: values named at the axis, instead of round ones."""
        self.width, self.height = size
        self.x = Scale(x, 48, self.width - 16)
        self.y = Scale(y, self.height - 38, 36)
        self._parts = [self._axes(labels, formats, x_ticks or self.x.ticks(70))]

    def add(self, arm: int, *elements: str) -> None:
        """Draw the elements of an arm over what is there."""
        self._parts.append(f'<g class="arm arm{arm % COLOURS}" data-arm="{arm}">{"".join(elements)}</g>')

    def line(self, points: Sequence[Point], kind: str = "line", dash: str = "") -> str:
        """A line through points of values. kind: class of the style sheet."""
        return f'<path class="{kind}" d="{self._path(points)}"{_dash(dash)}/>'

    def band(self, low: Sequence[Point], high: Sequence[Point]) -> str:
        """The area between two lines."""
        return f'<path class="band" d="{self._path([*low, *reversed(high)])}Z"/>'

    def mark(self, arm: int, point: Point, tip: str, kind: str = "mark") -> str:
        """The marker of an arm, with the read-out `tip`."""
        return mark(arm, self.x(point[0]), self.y(point[1]), tip, kind)

    def note_line(self, value: float, text: str) -> None:
        """A horizontal line with a text above its left end."""
        y = self.y(value)
        self._parts.append(
            f'<path class="note" d="M{self.x.start:.1f} {y:.1f}H{self.x.end:.1f}"/>'
            f'<text class="faint" x="{self.x.start + 4:.1f}" y="{y - 4:.1f}">{escape(text)}</text>'
        )

    def front(self, points: Sequence[Point], text: str = "") -> None:
        """A dashed line of no arm through points, with a text at its end."""
        x, y = self.x(points[-1][0]) - 8, self.y(points[-1][1]) + 4
        self._parts.append(
            f'<path class="note" d="{self._path(points)}"/>'
            f'<text class="faint" x="{x:.1f}" y="{y:.1f}" text-anchor="end">{escape(text)}</text>'
        )

    def svg(self, label: str, **data: object) -> str:
        """The picture; `label` says to screen readers what it shows, `data` to the page's script."""
        return picture(self.width, self.height, label, self._parts, **data)

    def _path(self, points: Sequence[Point]) -> str:
        """Steps from point to point, which are shorter than places; their rounding does not add up."""
        places = [(round(10 * self.x(x)), round(10 * self.y(y))) for x, y in points]
        steps = ((x - x0, y - y0) for (x0, y0), (x, y) in pairwise([(0, 0), *places]))
        return "m" + " ".join(f"{x / 10:g} {y / 10:g}" for x, y in steps).replace(" -", "-")

    def _axes(self, labels: tuple[str, str], formats: tuple[Format, Format], x_ticks: Sequence[float]) -> str:
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        rows = "".join(
            f'<path class="grid" d="M{left} {self.y(t):.1f}H{right}"/>'
            f'<text x="{left - 6}" y="{self.y(t) + 4:.1f}" text-anchor="end">{escape(formats[1](t))}</text>'
            for t in self.y.ticks(44)
        )
        columns = "".join(
            f'<path class="grid" d="M{self.x(t):.1f} {bottom}v4"/>'
            f'<text x="{self.x(t):.1f}" y="{bottom + 17}" text-anchor="middle">{escape(formats[0](t))}</text>'
            for t in x_ticks
        )
        return (
            f'{rows}{columns}<path class="axis" d="M{left} {bottom}H{right}"/>'
            f'<text class="faint" x="{right}" y="{self.height - 5}" text-anchor="end">{escape(labels[0])}</text>'
            f'<text class="faint" x="4" y="{top - 24}">{escape(labels[1])}</text>'
        )


def mark(arm: int, x: float, y: float, tip: str, kind: str = "mark") -> str:
    """The marker of an arm at a place in pixels."""
    place = f'x="{x:.1f}" y="{y:.1f}"'
    if "large" in kind:
        place = f'transform="translate({x:.1f} {y:.1f})scale(1.5)"'
    return f'<use class="{kind}" href="#m{arm % len(MARKERS)}" {place} data-tip="{escape(tip)}"/>'


def dash_of(arm: int) -> str:
    """The dash of an arm's line."""
    return DASHES[arm % len(DASHES)]


def swatch(arm: int) -> str:
    """The line and marker of an arm, for a legend."""
    return (
        f'<svg class="arm{arm % COLOURS}" width="30" height="14" viewBox="0 0 30 14" aria-hidden="true">'
        f'<path class="line" d="M0 7H30"{_dash(dash_of(arm))}/>'
        f'<use class="mark" href="#m{arm % len(MARKERS)}" transform="translate(15 7)"/></svg>'
    )


def markers() -> str:
    """The shapes of markers, which those of a page refer to."""
    shapes = "".join(f'<path id="m{number}" d="{shape}"/>' for number, shape in enumerate(MARKERS))
    return f'<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>{shapes}</defs></svg>'


def picture(width: int, height: float, label: str, parts: Iterable[str], **data: object) -> str:
    """An SVG element of `width` x `height` pixels, with `data` as data- attributes."""
    attributes = "".join(f' data-{name}="{escape(str(value))}"' for name, value in data.items())
    return (
        f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height:.0f}" '
        f'style="max-width:{width * 1.25:.0f}px"{attributes}>{"".join(parts)}</svg>'
    )


def _dash(dash: str) -> str:
    return f' stroke-dasharray="{dash}"' if dash else ""

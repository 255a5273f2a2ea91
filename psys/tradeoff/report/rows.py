"""Charts with a row for each arm as inline SVG: dots of seeds with mean and interval, shares of bars, histograms.

A row's name stands above its marks, and its figures at the right end, so that names of any length stay whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from psys.tradeoff.report.svg import CHARACTER, COLOURS, Format, Scale, mark, picture
from psys.tradeoff.words import percent

_LEFT, _LINE, _TRACK, _AXIS = 8, 17, 26, 40


@dataclass(frozen=True)
class Dot:
    """One value with its read-out; an open one was not reached by the end of the trial."""

    value: float
    tip: str
    open: bool = False


@dataclass(frozen=True)
class Row:
    """An arm's dots, their mean or median, and its interval; no upper end: it is open."""

    arm: int
    name: str
    figures: str
    dots: Sequence[Dot]
    mean: Dot | None
    interval: tuple[float, float | None] | None = None


def rows(
    width: int,
    content: Sequence[Row],
    axis: tuple[str, Format],
    label: str,
    *,
    include: Sequence[float] = (),
    origin: float | None = None,
    margin: float | None = None,
    log: bool = False,
) -> str:
    """A row of dots, mean and interval for each arm over one axis.

    include: values that the axis holds beside those shown. origin: where "no difference" is, as a line, with `margin`
    on both sides of it shaded.
    """
    values = [value for row in content for value in _values(row)] + list(include)
    x = Scale(values, _LEFT + 12, width - 22, log=log)
    parts, y = list[str](), 0.0
    tops = _tops(width, [(row.name, row.figures) for row in content], _TRACK)
    height = tops[-1] + _AXIS
    if margin is not None and origin is not None:
        parts.append(f'<path class="shade" d="M{x(origin - margin):.1f} 0V{tops[-1]}H{x(origin + margin):.1f}V0Z"/>')
    parts.append(_axis(x, tops[-1], axis, width))
    if origin is not None:
        parts.append(f'<path class="note" d="M{x(origin):.1f} 0V{tops[-1]}"/>')
    for row, top, bottom in zip(content, tops, tops[1:], strict=False):
        y = bottom - _TRACK / 2
        marks = [f'<path class="grid" d="M{_LEFT} {y}H{width - 8}"/>']
        if row.interval:
            low, high = x(row.interval[0]), x(row.interval[1]) if row.interval[1] is not None else width - 8
            end = f"M{high:.1f} {y - 5}v10" if row.interval[1] is not None else f"M{high - 5:.1f} {y - 4}l5 4l-5 4"
            marks.append(f'<path class="interval" d="M{low:.1f} {y}H{high:.1f}M{low:.1f} {y - 5}v10{end}"/>')
        for dot in row.dots:
            marks.append(mark(row.arm, x(dot.value), y, dot.tip, "seed open" if dot.open else "seed"))
            if dot.open:
                marks.append(f'<path class="interval thin" d="M{x(dot.value) + 6:.1f} {y}h7m-3 -3l3 3l-3 3"/>')
        if row.mean:
            marks.append(mark(row.arm, x(row.mean.value), y, row.mean.tip, "mark large"))
        parts.append(_row(row.arm, row.name, row.figures, top, width, marks))
    return picture(width, height, label, parts)


def shares(
    width: int,
    content: Sequence[tuple[int, str, str, Sequence[tuple[str, float, str]]]],
    axis: tuple[str, Format],
    label: str,
) -> str:
    """A bar of parts for each row (arm, name, figures, parts); a part is (class, share, read-out)."""
    x = Scale((0.0, 1.0), _LEFT + 6, width - 22)
    tops = _tops(width, [(name, figures) for _, name, figures, _ in content], _TRACK)
    parts = [_axis(x, tops[-1], axis, width)]
    for (arm, name, figures, bars), top, bottom in zip(content, tops, tops[1:], strict=False):
        before, marks = 0.0, list[str]()
        for kind, share, tip in bars:
            marks.append(
                f'<rect class="part {kind}" x="{x(before):.1f}" y="{bottom - _TRACK + 3}" '
                f'width="{x(share) - x(0):.1f}" height="16" data-tip="{escape(tip)}"/>'
            )
            before += share
        parts.append(_row(arm, name, figures, top, width, marks))
    return picture(width, tops[-1] + _AXIS, label, parts)


def histograms(
    width: int, content: Sequence[tuple[int, str, str, Mapping[int, float]]], axis: tuple[str, Format], label: str
) -> str:
    """A histogram for each row (arm, name, figures, share by whole number), a bar for each number, over one axis."""
    track, largest = 66, max(max(shares) for *_, shares in content)
    highest = max(max(shares.values()) for *_, shares in content)
    x = Scale((-0.5, largest + 0.5), _LEFT, width - 14)
    tops = _tops(width, [(name, figures) for _, name, figures, _ in content], track)
    parts = [_axis(x, tops[-1], axis, width, whole=True)]
    bar = max(1.0, 0.8 * (x(1) - x(0)))
    for (arm, name, figures, by_number), top, bottom in zip(content, tops, tops[1:], strict=False):
        y = Scale((0.0, highest), bottom - 2, bottom - track + 14)
        marks = [f'<path class="axis" d="M{_LEFT} {bottom - 2}H{width - 14}"/>']
        for number, share in by_number.items():
            tip = f"{name}\nstaleness {number}: {100 * share:.2f} % of the gradients"
            marks.append(
                f'<rect class="bar" x="{x(number) - bar / 2:.2f}" y="{y(share):.1f}" width="{bar:.2f}" '
                f'height="{bottom - 2 - y(share):.1f}" data-tip="{escape(tip)}"/>'
            )
            if bar > 6 * CHARACTER:
                marks.append(
                    f'<text class="faint" x="{x(number):.1f}" y="{y(share) - 3:.1f}" text-anchor="middle">'
                    f"{percent(share)}</text>"
                )
        parts.append(_row(arm, name, figures, top, width, marks))
    return picture(width, tops[-1] + _AXIS, label, parts)


def _values(row: Row) -> list[float]:
    ends = [end for end in row.interval or () if end is not None]
    return [*(dot.value for dot in row.dots), *([row.mean.value] if row.mean else []), *ends]


def _tops(width: int, texts: Sequence[tuple[str, str]], track: int) -> list[float]:
    """Where each row begins and the last one ends: figures that do not fit beside the name take a line of their own."""
    tops = [0.0]
    for name, figures in texts:
        lines = 1 if _fit(name, figures, width) else 2
        tops.append(tops[-1] + lines * _LINE + track + 4)
    return tops


def _fit(name: str, figures: str, width: int) -> bool:
    return (len(name) + len(figures) + 5) * CHARACTER < width


def _row(arm: int, name: str, figures: str, top: float, width: int, marks: Sequence[str]) -> str:
    beside = _fit(name, figures, width)
    place = f'x="{width - 10}" y="{top + 14}" text-anchor="end"' if beside else f'x="{_LEFT}" y="{top + 14 + _LINE}"'
    return (
        f'<g class="arm arm{arm % COLOURS}" data-arm="{arm}"><text class="name" x="{_LEFT}" y="{top + 14}">'
        f"{escape(name)}</text><text {place}>{escape(figures)}</text>{''.join(marks)}</g>"
    )


def _axis(x: Scale, y: float, axis: tuple[str, Format], width: int, *, whole: bool = False) -> str:
    ticks = [tick for tick in x.ticks(70) if not whole or tick == int(tick)]
    return (
        "".join(
            f'<path class="grid" d="M{x(tick):.1f} 0V{y}"/>'
            f'<text x="{x(tick):.1f}" y="{y + 16}" text-anchor="middle">{escape(axis[1](tick))}</text>'
            for tick in ticks
        )
        + f'<text class="faint" x="{width - 10}" y="{y + 33}" text-anchor="end">{escape(axis[0])}</text>'
    )

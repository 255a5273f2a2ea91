"""A self-contained page: sections, the curves as embedded JSON, and a short script that reads them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np

from psys.run.curves import EpochPoint
from psys.tradeoff.analysis import Analysis
from psys.tradeoff.report.sections import Section
from psys.tradeoff.report.svg import markers, swatch

_PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))


def page(lead: str, analysis: Analysis, sections: Sequence[Section]) -> str:
    """The page as HTML, with the curves of all trials, which its script reads out."""
    study = analysis.study
    conditions = study.conditions
    return _PAGE.substitute(
        title=escape(study.name),
        lead=escape(lead),
        tabs="".join(
            f'<button class="tab" role="tab" data-key="{quote(name)}">{escape(name)}</button>' for name in conditions
        ),
        chips="".join(
            f'<button class="chip" aria-pressed="true" data-arm="{number}" data-name="{escape(name)}">'
            f"{swatch(number)}{escape(name)}</button>"
            for number, name in enumerate(study.arms)
        ),
        markers=markers(),
        sections="\n".join(section.html(conditions) for section in sections),
        curves=json.dumps(_curves(analysis), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _curves(analysis: Analysis) -> dict[str, Any]:
    """By condition, arm and seed: the points of a trial as lists by name, with 6 significant digits."""

    def columns(curve: Sequence[EpochPoint]) -> dict[str, list[float | None]]:
        values = ([v if v is None else float(f"{v:.6g}") for v in column] for column in zip(*curve, strict=True))
        return dict(zip(EpochPoint._fields, values, strict=True))

    return {
        condition.name: {
            arm: {str(seed): columns(curve) for seed, curve in result.curves.items() if curve}
            for arm, result in condition.arms.items()
        }
        for condition in analysis.conditions
    }


def plain(value: Any) -> Any:
    """A value of a study as JSON values: points as lists by name, right/wrong bits left out.

    An arm's `curves` are left out as well: its trials have them.
    """
    if isinstance(value, tuple) and value and isinstance(value[0], EpochPoint):
        return dict(zip(EpochPoint._fields, map(list, zip(*value, strict=True)), strict=True))
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value) if field.name != "curves"}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items() if not isinstance(each, np.ndarray)}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value

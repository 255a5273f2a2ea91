"""A self-contained page: sections, the figures as embedded JSON, and a short script that reads them."""

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
from psys.tradeoff.report.sections import Section
from psys.tradeoff.report.svg import swatch

_PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))


def page(
    title: str,
    lead: str,
    arms: Sequence[str],
    conditions: Sequence[str],
    sections: Sequence[Section],
    figures: Mapping[str, Any],
) -> str:
    """The page as HTML. figures: JSON values, with `trials` as the script reads them."""
    return _PAGE.substitute(
        title=escape(title),
        lead=escape(lead),
        tabs="".join(
            f'<button class="tab" role="tab" data-key="{quote(name)}">{escape(name)}</button>' for name in conditions
        ),
        chips="".join(
            f'<button class="chip" aria-pressed="true" data-arm="{number}" data-name="{escape(name)}">'
            f"{swatch(number)}{escape(name)}</button>"
            for number, name in enumerate(arms)
        ),
        sections="\n".join(section.html(conditions) for section in sections),
        figures=json.dumps(figures, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


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

"""Any runs side by side: what they reached, the settings that differ, and their curves on one page."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from psys.errors import PsysError
from psys.tradeoff.analysis import analyze
from psys.tradeoff.outcome import EndedTrial, Outcome, Study, differing, read_outcome
from psys.tradeoff.report import sections, tables
from psys.tradeoff.report.page import page
from psys.tradeoff.summary import counted_snapshot
from psys.tradeoff.words import count, duration, percent

_CONDITION = "runs"


def compare(runs: Sequence[Path], out: Path, console: Console) -> None:
    """Compare runs, which may have any settings: print a table, and write a page with their curves together.

    Raises PsysError if a directory has no run that was evaluated, is given twice, or if `out` cannot be written.
    """
    outcomes = dict(zip(_names(runs), map(read_outcome, runs), strict=True))
    names = differing(outcome.settings for outcome in outcomes.values())
    console.print(_table(outcomes, names))
    try:
        out.write_text(_page(outcomes, names), encoding="utf-8")
    except OSError as error:
        raise PsysError(f"cannot write {out}: {error.strerror}") from None
    console.print(f"curves and figures: {out}", markup=False, soft_wrap=True, highlight=False)


def _names(runs: Sequence[Path]) -> list[str]:
    """The runs' own names, or their paths where two have the same name."""
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise PsysError(f"{min(twice)} is given twice")
    return names


def _table(outcomes: Mapping[str, Outcome], names: Sequence[str]) -> Table:
    table = Table(title=f"{count(len(outcomes), 'run')} compared", title_justify="left")
    for name in ("", *outcomes):
        table.add_column(escape(name), overflow="fold")
    for name in names:
        table.add_row(name, *(escape(str(outcome.settings.get(name, ""))) for outcome in outcomes.values()))
    table.add_section()
    for name, shown in {
        "test accuracy": lambda outcome: percent(outcome.accuracy),
        "test images": lambda outcome: f"{outcome.test_images:,}",
        "wall-clock of training": lambda outcome: duration(outcome.seconds),
        "speed": lambda outcome: f"{outcome.images_per_second:.0f} images/s",
        "workers": lambda outcome: str(outcome.workers),
        "staleness mean / max": lambda outcome: f"{outcome.staleness_mean:.2f} / {max(outcome.staleness)}",
    }.items():
        table.add_row(name, *map(shown, outcomes.values()))
    return table


def _page(outcomes: Mapping[str, Outcome], names: Sequence[str]) -> str:
    settings: dict[str, dict[str, Any]] = {
        run: {name: outcome.settings.get(name) for name in names} for run, outcome in outcomes.items()
    }
    trials = [
        EndedTrial(run, run, _CONDITION, outcome.settings["seed"], None, None, None, "", outcome)
        for run, outcome in outcomes.items()
    ]
    seeds = tuple(sorted({trial.seed for trial in trials}))
    study = Study("Runs compared", settings, None, (_CONDITION,), seeds, (), None, None, 0, tuple(trials))
    analysis = analyze(study)
    differences = tables.settings_table(settings, names).html() if names else "<p>None: all settings are equal.</p>"
    content = [
        replace(sections.key_figures(analysis), how=f"Test accuracy is that of {counted_snapshot(analysis)}."),
        sections.Section("Settings that differ", "", {}, differences),
        sections.accuracy_by_time(analysis),
        sections.accuracy_against_time(analysis),
        *sections.of_runs(analysis),
    ]
    lead = f"{count(len(outcomes), 'run')}, each an arm of its own with one seed: differences may be chance."
    return page(lead, analysis, content)

"""Tables of a study as rows of values, and a table as HTML, Markdown and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from psys.tradeoff.analysis import Analysis, Condition
from psys.tradeoff.outcome import EndedTrial
from psys.tradeoff.report.figures import with_interval
from psys.tradeoff.words import (
    IMAGES_PER_SECOND,
    PERCENT,
    confidence,
    duration,
    hours_unit,
    level_name,
    percent,
    points,
    seconds_unit,
    target_name,
    times,
)


@dataclass(frozen=True)
class Cell:
    """A text of a table and its class in the style sheet: words are "left", long ones "text"; figures have none."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Cells in rows under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def html(self, first: Sequence[str] = ()) -> str:
        """The table as HTML that scrolls inside itself; `first`: HTML before the first text of each row."""

        def cell(content: Cell, before: str = "") -> str:
            kind = f' class="{content.kind}"' if content.kind else ""
            return f"<td{kind}>{before}{escape(content.text)}</td>"

        words = [any(row[column].kind for row in self.rows) for column in range(len(self.header))]
        kinds = [' class="left"' if each else "" for each in words]
        head = "".join(f"<th{kind}>{escape(title)}</th>" for title, kind in zip(self.header, kinds, strict=True))
        body = "".join(
            f"<tr>{''.join(cell(each, first[i] if first and not j else '') for j, each in enumerate(row))}</tr>"
            for i, row in enumerate(self.rows)
        )
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [list(self.header), ["---"] * len(self.header), *([cell.text for cell in row] for row in self.rows)]
        return "\n".join(f"| {' | '.join(map(markdown_text, line))} |" for line in lines)


def markdown_text(text: str) -> str:
    """A text that Markdown shows as it is."""
    escaped = escape(text, quote=False).replace("|", "\\|").replace("\n", " ")
    return "".join(f"\\{character}" if character in "*_`[" else character for character in escaped)


def key_figures(condition: Condition) -> Table:
    """The figures of each arm, with 95 % intervals."""
    content = []
    for arm, result in condition.arms.items():
        line = [Cell(arm), Cell(str(len(result.curves))), Cell(str(result.workers))]
        line.append(Cell(f"{result.learning_rate:.3g}"))
        for figure, unit in (
            (result.accuracy, PERCENT),
            (result.seconds, seconds_unit(result.seconds.summary.mean)),
            (result.images_per_second, replace(IMAGES_PER_SECOND, name="")),
            (result.worker_hours, replace(hours_unit(result.worker_hours.summary.mean), name="")),
        ):
            line.append(Cell(with_interval(figure.summary, unit)))
        content.append(line)
    header = ["arm", "seeds", "workers", "rate", "test accuracy", "training time", "images/s", "worker-hours"]
    return Table(header, content)


def comparison(condition: Condition, reference: str) -> Table:
    """Each arm against the reference arm, with 95 % intervals and claims."""
    content = []
    for arm, result in condition.arms.items():
        if versus := result.versus:
            difference, ratio = points(versus.accuracy.mean), times(versus.times_as_fast.mean)
            if versus.interval:
                difference += f" ({points(versus.interval[0])} to {points(versus.interval[1])})"
            if versus.times_as_fast.low is not None and versus.times_as_fast.high is not None:
                ratio += f" ({times(versus.times_as_fast.low)} to {times(versus.times_as_fast.high)})"
            content.append(
                [
                    Cell(arm),
                    Cell(str(len(versus.seeds))),
                    Cell(difference),
                    Cell("–" if versus.p_better is None else confidence(versus.p_better)),
                    Cell(ratio),
                    Cell(versus.claim.text, "left"),
                ]
            )
    header = ["arm", "pairs", f"points over {reference}", "P(better)", f"times as fast as {reference}"]
    return Table([*header, "claim on accuracy"], content)


def targets(condition: Condition) -> Table:
    """When each arm reached each target: the median with its interval, and the mean curve."""
    content = []
    for arm, result in condition.arms.items():
        for target in result.targets:
            summary, ratio = target.summary, target.times_as_fast
            median = "–" if summary.median is None else duration(summary.median)
            if summary.low is not None and summary.level is not None:
                high = "never" if summary.high is None else duration(summary.high)
                median += f" ({duration(summary.low)} to {high}, {level_name(summary.level)})"
            curve = duration(target.of_mean_curve.seconds) if target.of_mean_curve else ""
            soon = "" if ratio is None else times(ratio.mean)
            if ratio and ratio.low is not None and ratio.high is not None:
                soon += f" ({times(ratio.low)} to {times(ratio.high)})"
            content.append(
                [
                    Cell(arm),
                    Cell(target_name(target.target)),
                    Cell(f"{summary.reached} of {summary.trials}"),
                    Cell(median),
                    Cell(curve if target.of_mean_curve and target.of_mean_curve.reached else "–"),
                    Cell(soon),
                ]
            )
    return Table(["arm", "target", "reached", "median time", "mean curve", "times as fast as the reference"], content)


def trials(analysis: Analysis) -> Table:
    """All trials, failed ones with their reason."""
    header = [*trial_values(analysis, analysis.study.trials[0])] if analysis.study.trials else []
    content = []
    for trial in analysis.study.trials:
        cells = []
        for name, value in trial_values(analysis, trial).items():
            kind = "" if not isinstance(value, str) else "text failed" if name == "failed" else "left"
            cells.append(Cell(_shown(name, value), kind))
        content.append(cells)
    return Table([name.replace("_", " ") for name in header], content)


def trial_values(analysis: Analysis, trial: EndedTrial) -> dict[str, Any]:
    """A trial's figures by name, as report.csv has them: shares, seconds; None where there is none."""
    outcome = trial.outcome
    values: dict[str, Any] = {
        "trial": trial.name,
        "arm": trial.arm,
        "condition": trial.condition,
        "seed": trial.seed,
        "tuning": trial.tuning,
        "failed": trial.reason if outcome is None else None,
        "accuracy": outcome and outcome.accuracy,
        "test_images": outcome and outcome.test_images,
        "seconds": outcome and outcome.seconds,
        "images_per_second": outcome and outcome.images_per_second,
        "workers": outcome and outcome.workers,
        "worker_hours": outcome and outcome.worker_hours,
        "learning_rate": outcome and outcome.learning_rate,
        "staleness_mean": outcome and outcome.staleness_mean,
        "staleness_max": outcome and max(outcome.staleness),
    }
    for name in ("applied", "reissued", "late", "duplicates", "lost"):
        values[name] = outcome and outcome.batches.get(name)
    for target in analysis.study.targets:
        reached = outcome and outcome.time_to(target)
        values[f"seconds_to_{100 * target:g}"] = reached.seconds if reached and reached.reached else None
    return values | {"load": trial.load, "host": trial.host}


def as_csv(analysis: Analysis) -> str:
    """One line for each trial."""
    text = io.StringIO()
    lines = [trial_values(analysis, trial) for trial in analysis.study.trials]
    writer = csv.DictWriter(text, lines[0] if lines else ["trial"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _shown(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "accuracy":
        return percent(value)
    if name == "seconds" or name.startswith("seconds_to"):
        return duration(value)
    if name == "worker_hours":
        return hours_unit(value).text(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def settings_table(columns: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Table:
    """Settings (rows) of arms or runs (columns)."""
    content = [
        [Cell(name), *(Cell(str(settings.get(name, "")), "text") for settings in columns.values())] for name in names
    ]
    return Table(["setting", *columns], content)

"""The report of a study: one page that works offline, and its figures as Markdown, JSON, CSV and PNG."""

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from psys.errors import PsysError
from psys.tradeoff.analysis import Analysis, analyze
from psys.tradeoff.outcome import differing, read_environment, read_study
from psys.tradeoff.report import sections, tables
from psys.tradeoff.report.page import page, plain
from psys.tradeoff.report.png import draw
from psys.tradeoff.summary import Findings, findings
from psys.tradeoff.words import count


def write_report(study: Path) -> None:
    """Write report.html, report.md, report.json, report.csv and pictures into a study's directory.

    The study may still be going on. Raises PsysError if the directory has no study, or cannot be written.
    """
    analysis = analyze(read_study(study))
    text = (study / "study.yaml").read_text(encoding="utf-8")
    try:
        for name, content in render(analysis, text, read_environment(study)).items():
            (study / name).write_text(content, encoding="utf-8")
        draw(analysis, study)
    except OSError as error:
        raise PsysError(f"cannot write the report in {study}: {error.strerror}") from None


def render(analysis: Analysis, settings: str, environment: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a report by file name. settings: the study's, as YAML; environment: of its start, JSON values."""
    found = findings(analysis)
    figures = as_json(analysis) | {"findings": plain(found), "environment": environment}
    return {
        "report.html": _html(analysis, found, settings, environment),
        "report.md": _markdown(analysis, found, environment),
        "report.json": json.dumps(figures, indent=1, allow_nan=False) + "\n",
        "report.csv": tables.as_csv(analysis),
    }


def as_json(analysis: Analysis) -> dict[str, Any]:
    """All figures as JSON values: trials with their curves, and, of their settings, those that differ."""
    outcomes = [trial.outcome for trial in analysis.study.trials if trial.outcome]
    names = differing(outcome.settings for outcome in outcomes)
    content: dict[str, Any] = plain(analysis)
    content["trials"] = content["study"].pop("trials")
    del content["failed"]
    for trial in content["trials"]:
        if trial["outcome"]:
            trial["outcome"]["environment"].pop("command", None)  # the study's is beside it
            trial["outcome"]["settings"] = {name: trial["outcome"]["settings"].get(name) for name in names}
    common = outcomes[0].settings if outcomes else {}
    return content | {"settings": {name: value for name, value in common.items() if name not in names}}


def _html(analysis: Analysis, found: Findings, settings: str, environment: Mapping[str, Any]) -> str:
    study = analysis.study
    content = [
        sections.summary(analysis, found),
        *sections.of_study(analysis),
        sections.all_trials(analysis),
        sections.setup(settings, _machine(analysis, environment)),
    ]
    lead = (
        f"A study of accuracy against wall-clock: {count(len(study.arms), 'arm')}, "
        f"{count(len(study.conditions), 'condition')}, {count(len(study.seeds), 'seed')}."
    )
    return page(lead, analysis, content)


def _markdown(analysis: Analysis, found: Findings, environment: Mapping[str, Any]) -> str:
    study = analysis.study
    lines = [f"# {tables.markdown_text(study.name)}", "", *map(tables.markdown_text, found.about)]
    for condition in analysis.conditions:
        sentences = [f"- {tables.markdown_text(sentence)}" for sentence in found.by_condition[condition.name]]
        lines += ["", f"## {tables.markdown_text(condition.name)}", "", *sentences]
        compared = tables.comparison(condition, study.reference or "")
        shown = tables.key_figures(condition), compared, tables.targets(condition)
        lines += [line for table in shown if table.rows for line in ("", table.markdown())]
    lines += [
        "",
        "## Limits of these findings",
        "",
        *(f"- {tables.markdown_text(sentence)}" for sentence in found.cautions),
    ]
    lines += ["", "## All trials", "", tables.trials(analysis).markdown()]
    lines += ["", "## How it was made", ""]
    lines += [f"- {name}: {tables.markdown_text(value)}" for name, value in _machine(analysis, environment).items()]
    return "\n".join(lines) + "\n"


def _machine(analysis: Analysis, environment: Mapping[str, Any]) -> dict[str, str]:
    """The study's command, and versions and machine of its trials, in words; nothing for what was not recorded."""
    of_trials = [outcome.environment for outcome in analysis.outcomes if outcome.environment] or [environment]
    starts = [str(each["started"]) for each in of_trials if "started" in each]
    shown = {"command": shlex.join(map(str, environment.get("command", [])))}
    shown |= {
        name: "; ".join(dict.fromkeys(text for each in of_trials if (text := said(each))))
        for name, said in _ENVIRONMENT.items()
    }
    shown |= {"trials started": " to ".join(dict.fromkeys([min(starts), max(starts)])) if starts else ""}
    return {name: text for name, text in shown.items() if text}


def _packages(environment: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items() if version)


def _memory(environment: Mapping[str, Any]) -> str:
    return f"{environment['memory_bytes'] / 2**30:.1f} GiB" if "memory_bytes" in environment else ""


_ENVIRONMENT: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "commit": lambda environment: environment.get("commit") or "",
    "Python": lambda environment: environment.get("python", ""),
    "packages": _packages,
    "processor": lambda environment: environment.get("processor", ""),
    "cores": lambda environment: str(environment.get("cores", "")),
    "memory": _memory,
    "system": lambda environment: environment.get("system", ""),
}

"""The report's files: equal figures in each of them, escaped texts, and pictures."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from psys.run.curves import EpochPoint
from psys.tradeoff.analysis import Analysis, analyze
from psys.tradeoff.outcome import Outcome
from psys.tradeoff.report import render
from psys.tradeoff.report.png import draw
from psys.tradeoff.report.svg import COLOURS, DASHES, MARKERS
from psys.tradeoff.words import percent, times
from tests.support.outcomes import bits, outcome, study, trial

HOSTILE = "<script>alert('&')</script> | *a* `b`"
ENVIRONMENT: dict[str, Any] = {"command": ["psys", "tradeoff", "--name", "</script>"], "processor": "<b>&", "cores": 2}


def compared(arms: tuple[str, ...] = ("sync", "async"), reason: str = "it was killed", **fields: Any) -> Analysis:
    """Two conditions, three seeds; the last arm's last trial failed. Accuracies and times differ in all trials."""
    trials = [
        trial(
            arm,
            seed,
            outcome((0.3, 0.35 + seed / 10), 20.0 / (number + 1) + seed, bits(0.4 + number / 10 + seed / 100)),
            condition,
        )
        for condition in ("uniform", "one-slow")
        for number, arm in enumerate(arms)
        for seed in (0, 1, 2)
    ]
    trials[-1] = trial(arms[-1], 2, None, "one-slow", reason=reason)
    return analyze(study(trials, targets=(0.5,), margin=0.01, **fields))


def embedded_curves(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="curves">(.*?)</script>', page, re.S)
    assert found is not None
    curves: dict[str, Any] = json.loads(found[1])
    return curves


def test_json_csv_markdown_and_page_have_the_same_figures() -> None:
    files = render(compared(), "name: by-hand", ENVIRONMENT)
    figures = json.loads(files["report.json"])
    curves = embedded_curves(files["report.html"])
    lines = {line["trial"]: line for line in csv.DictReader(io.StringIO(files["report.csv"]))}
    assert len(lines) == len(figures["trials"]) == 12
    for each in figures["trials"]:
        line, reached = lines[each["name"]], each["outcome"]
        if reached is None:
            assert (line["failed"], line["accuracy"]) == ("it was killed", "")
            continue
        assert float(line["accuracy"]) == reached["accuracy"]
        assert float(line["seconds"]) == reached["seconds"]
        assert float(line["staleness_mean"]) == 0.25
        embedded = curves[each["condition"]][each["arm"]][str(each["seed"])]
        assert embedded.keys() == reached["points"].keys()
        assert all(embedded[name] == pytest.approx(values, rel=1e-5) for name, values in reached["points"].items())
    async_ = figures["conditions"][0]["arms"]["async"]
    assert async_["accuracy"]["by_seed"]["2"] == float(lines["async.uniform.seed2"]["accuracy"])
    assert percent(async_["accuracy"]["summary"]["mean"]) in files["report.md"]
    assert f"<td>{percent(async_['accuracy']['summary']['mean'])} (" in files["report.html"]
    assert f"<td>{times(async_['versus']['times_as_fast']['mean'])} (" in files["report.html"]


def test_csv_and_json_say_when_each_trial_reached_the_target() -> None:
    files = render(compared(), "", ENVIRONMENT)
    lines = {line["trial"]: line for line in csv.DictReader(io.StringIO(files["report.csv"]))}
    assert (lines["sync.uniform.seed1"]["seconds_to_50"], lines["sync.uniform.seed2"]["seconds_to_50"]) == ("", "22.0")
    (target,) = json.loads(files["report.json"])["conditions"][0]["arms"]["sync"]["targets"]
    assert target["by_seed"]["1"] == {"seconds": 21.0, "reached": False}


def test_marks_read_out_time_staleness_and_trials_that_never_reached_a_target() -> None:
    page = render(compared(), "", ENVIRONMENT)["report.html"]
    for tip in (
        "sync, worker0\ncompute: 8.0 s, 80.0 %",
        "sync\nstaleness 0: 75.00 % of the gradients",
        "sync, seed 1\nnot reached by its end at 21.0 s",
        "async, seed 2\n+10.0 points",
        "async, seed 1\n1.91 times as fast",
    ):
        assert f'data-tip="{tip}"' in page


def test_page_shows_the_values_that_were_tuned_and_the_one_chosen() -> None:
    rates = {0.01: outcome((0.2, 0.3)), 0.1: outcome((0.2, 0.4)), 1.0: None}
    tried = [trial("sync", 0, ended, tuning=rate) for rate, ended in rates.items()]
    final = trial("sync", 0, outcome(settings={"snapshot_epochs": 1.0, "schedule.learning_rate": 0.1}))
    page = render(analyze(study([*tried, final], tuned="schedule.learning_rate")), "", {})["report.html"]
    names = re.findall(r'<text class="name"[^>]*>([^<]*)</text>', page[page.index("<h2>Tuning</h2>") :])
    assert names == ["0.01", "0.1  ← chosen", "1.0"]


def test_findings_and_limits_are_in_page_markdown_and_json() -> None:
    files = render(compared(), "", ENVIRONMENT)
    found = json.loads(files["report.json"])["findings"]
    sentences = [*found["about"], *found["by_condition"]["uniform"], *found["cautions"]]
    assert len(sentences) > 5
    for sentence in sentences:
        assert sentence in files["report.html"]
        assert sentence in files["report.md"]


def test_texts_of_users_are_escaped_everywhere() -> None:
    analysis = compared(("sync", HOSTILE), reason=HOSTILE, name=HOSTILE)
    files = render(analysis, f"name: {HOSTILE}", ENVIRONMENT)
    page = files["report.html"]
    assert "<script>alert" not in page
    assert page.count("</script>") == 2  # the figures and the page's own
    assert "<b>&" not in page
    assert "<script>" not in files["report.md"]
    assert json.loads(files["report.json"])["study"]["name"] == HOSTILE


def test_the_page_refers_to_nothing_outside() -> None:
    page = render(compared(), "", ENVIRONMENT)["report.html"]
    assert not re.search(r"(?:src|href)=(?!\"#m)|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    "analysis",
    [
        analyze(study([trial("sync", 0, None), trial("async", 0, None)])),
        analyze(study([trial("sync", 0, outcome())])),
        analyze(study([trial("sync", 0, outcome((None, None), worker_times=None, batches={}))], targets=(0.5,))),
        analyze(study([], arms={"sync": {}}, reference="sync", conditions=("uniform",), seeds=(0,))),
    ],
    ids=["all failed", "one arm and seed", "nothing recorded", "nothing ended"],
)
def test_a_study_with_hardly_anything_has_a_report(analysis: Analysis, tmp_path: Path) -> None:
    files = render(analysis, "", {})
    assert all("nan" not in re.sub(r"<script.*", "", text, flags=re.S).lower() for text in files.values())
    draw(analysis, tmp_path)


def test_a_page_of_150_trials_of_60_evaluations_is_below_a_megabyte() -> None:
    rng = np.random.default_rng(0)

    def ended() -> Outcome:
        epochs = np.arange(1, 61) + 0.02 * rng.random(60)  # none is a round number
        columns = [epochs, 7 * epochs, 2 / epochs, 1 - 1 / epochs, 2.1 / epochs, 0.9 - 0.8 / epochs]
        points = tuple(EpochPoint(*map(float, point)) for point in zip(*columns, strict=True))
        return outcome(right=rng.random(2000) < 0.5, seconds=420 + rng.random(), points=points)

    trials = [
        trial(f"arm{number}", seed, ended(), name)
        for name in ("uniform", "one-slow", "gamma")
        for number in range(5)
        for seed in range(10)
    ]
    page = render(analyze(study(trials, targets=(0.3, 0.5), margin=0.01)), "", ENVIRONMENT)["report.html"]
    assert len(page) < 1_000_000
    points = embedded_curves(page)["gamma"]["arm4"]["9"]
    assert [len(values) for values in points.values()] == [60] * 6


def test_pictures_are_png_files(tmp_path: Path) -> None:
    draw(compared(), tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["accuracy.png", "curves.png", "final.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_no_two_arms_look_alike_and_the_first_five_differ_in_colour_dash_and_marker() -> None:
    styles = [(i % COLOURS, DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)]) for i in range(200)]
    assert len(set(styles)) == len(styles)
    assert [len(set(kind)) for kind in zip(*styles[:5], strict=True)] == [5, 5, 5]


@pytest.mark.parametrize(("seeds", "recorded"), [(4, True), (3, True), (4, False)])
def test_p_better_needs_four_seeds_and_the_answers_to_each_image(seeds: int, recorded: bool) -> None:
    trials = [
        trial(arm, seed, replace(ended, right=ended.right if recorded else None))
        for arm, right in (("sync", 0.5), ("async", 0.6))
        for seed in range(seeds)
        for ended in [outcome(right=bits(right + seed / 100))]
    ]
    analysis = analyze(study(trials))
    files = render(analysis, "", {})
    (row,) = re.findall(r"\| async \| \d \| \+10\.0 \(.*", files["report.md"])
    assert (analysis.versus[0].p_better is not None) == (seeds == 4 and recorded)
    assert ("P(better) is the confidence" in files["report.html"]) == (seeds == 4 and recorded)
    assert ("<dt>P(better)" in files["report.html"]) == (seeds == 4 and recorded)
    assert ("| – |" in row) == (seeds < 4 or not recorded)
    differences = "those of differences do." if recorded else "nor do those of differences"
    assert differences in files["report.md"]


def test_interval_of_a_median_time_has_its_level() -> None:
    trials = [trial("sync", seed, outcome((0.3, 0.5), 20.0 + seed)) for seed in range(5)]
    files = render(analyze(study(trials, targets=(0.5,))), "", {})
    assert "22.0 s (20.0 s to 24.0 s, 93.75 %)" in files["report.md"]
    assert "median 22.0 s, reached by 5 of 5, 93.75 % interval" in files["report.html"]


def test_a_failed_tuning_trial_counts_as_0_and_values_are_compared_as_values() -> None:
    tried = [trial("sync", seed, outcome((0.2, 0.3)), tuning=1) for seed in (0, 1)]
    tried += [trial("sync", 0, outcome((0.2, 0.5)), tuning=2), trial("sync", 1, None, tuning=2)]
    final = trial("sync", 0, outcome(settings={"snapshot_epochs": 1.0, "rate": 1.0}))
    page = render(analyze(study([*tried, final], tuned="rate", tuning_trials=4)), "", {})["report.html"]
    tuning = page[page.index("<h2>Tuning</h2>") :]
    assert re.findall(r'<text class="name"[^>]*>([^<]*)</text><text[^>]*>([^<]*)', tuning) == [
        ("1  ← chosen", "30.0 %"),
        ("2", "25.0 %, 1 of 2 failed and counted as 0"),
    ]


def test_legend_of_a_picture_has_the_arms_of_all_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    legends = []

    def read(figure: Figure, *unused: object) -> None:
        legend = figure.axes[0].get_legend()
        legends.append([text.get_text() for text in legend.get_texts()] if legend else [])

    monkeypatch.setattr(Figure, "savefig", read)
    trials = [trial("sync", 0, outcome()), trial("async", 0, None)]
    trials += [trial(arm, 0, outcome(), "slow") for arm in ("sync", "async")]
    draw(analyze(study(trials)), tmp_path)
    assert legends == [["sync", "async"]] * 3


def test_page_shows_the_machines_of_the_trials_and_says_that_they_differ() -> None:
    machines = [
        {"commit": commit, "processor": processor, "packages": {"torch": "2.13.0"}, "started": started}
        for commit, processor, started in (("c1", "p1", "2026-11-28"), ("c2", "p1", "2026-11-29"))
    ]
    trials = [trial("sync", seed, outcome(environment=machine)) for seed, machine in enumerate(machines)]
    latest = {"command": ["psys", "tradeoff"], "commit": "c3", "processor": "p3", "started": "2026-11-30"}
    text = render(analyze(study(trials)), "", latest)["report.md"]
    for line in ("command: psys tradeoff", "commit: c1; c2", "processor: p1", "packages: torch 2.13.0"):
        assert f"- {line}\n" in text
    assert "- trials started: 2026-11-28 to 2026-11-29\n" in text
    assert "c3" not in text
    assert "The trials differ in commit: differences between arms may come from this." in text


def test_hosts_and_packages_that_differ_are_said() -> None:
    trials = [
        trial("sync", seed, outcome(environment={"packages": {"torch": version}}), host=host)
        for seed, (version, host) in enumerate((("2.13.0", "a"), ("2.12.0", "b")))
    ]
    assert "The trials differ in host and package versions" in render(analyze(study(trials)), "", {})["report.md"]
    same = [trial("sync", seed, outcome(environment={"packages": {"torch": "2.13.0"}})) for seed in (0, 1)]
    assert "The trials differ" not in render(analyze(study(same)), "", {})["report.md"]

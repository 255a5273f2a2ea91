"""The sections of a report: figures and tables with a heading and how to read them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import psys.tradeoff.report.figures as figures
import psys.tradeoff.report.tables as tables
from psys.tradeoff.analysis import Analysis, Condition
from psys.tradeoff.report.svg import swatch
from psys.tradeoff.summary import Findings, counted_snapshot
from psys.tradeoff.words import margin_name, percent, target_name

SIZES = {"wide": (940, 420), "narrow": (346, 300)}
"""Of the main figure in pixels, which is drawn twice: for a desktop and for a phone."""
WIDTH = 420
"""Of all other figures in pixels, which a phone shrinks a little."""
_WORDS = {
    "arm": "one of the settings that the study compares, for example a way in which workers are synchronised.",
    "condition": "what the machine does to all arms alike, for example that one worker is slow.",
    "seed, trial": "a trial is one training run of one arm under one condition. Its seed draws the initial weights and "
    "the order of the data; chance differs between seeds.",
    "held-out images": "training images that are not trained on. They show progress and choose the best snapshot.",
    "test images": "images that are used once, to measure the final accuracy.",
    "snapshot": "the network as it is at one moment of the training.",
    "95 % interval": "where the true value lies with 95 % confidence, given how much the seeds differ.",
    "P(better)": "the confidence that the true difference in accuracy to the reference is above 0, if the noise of "
    "seeds and test images is normal. It is not corrected for the number of comparisons.",
    "staleness": "how many updates were made since a worker read the parameters that its gradient is for.",
}
_SWATCH = '<span class="key" style="background:var(--{0})"></span>{0}'


@dataclass(frozen=True)
class Section:
    """A heading, how to read what follows, and HTML: of each condition, or of the whole study."""

    title: str
    how: str
    by_condition: Mapping[str, str]
    whole: str = ""

    def html(self, conditions: Sequence[str]) -> str:
        """The section as HTML, or nothing if it has no content. The page shows one condition at a time."""
        several = len(conditions) > 1
        blocks = "".join(
            f'<div data-block="{conditions.index(name)}">{f"<h3>{escape(name)}</h3>" if several else ""}{content}</div>'
            for name, content in self.by_condition.items()
            if content
        )
        if not blocks and not self.whole:
            return ""
        how = f'<p class="how">{self.how}</p>' if self.how else ""
        return f"<section><h2>{escape(self.title)}</h2>{how}{blocks}{self.whole}</section>"


def summary(analysis: Analysis, found: Findings) -> Section:
    """The findings in sentences."""
    unused = set()
    if not any(versus.p_better is not None for versus in analysis.versus):
        unused.add("P(better)")
    if not analysis.held_out_images:
        unused.add("held-out images")
    cautions = (
        f'<div class="cautions"><h3>Limits of these findings</h3>{_list(found.cautions)}</div>'
        if found.cautions
        else ""
    )
    about = "".join(f"<p>{escape(sentence)}</p>" for sentence in found.about)
    by_condition = {name: _list(sentences) for name, sentences in found.by_condition.items()}
    words = "".join(f"<dt>{word}</dt><dd>{meaning}</dd>" for word, meaning in _WORDS.items() if word not in unused)
    glossary = f"<details><summary>Words used on this page</summary><dl>{words}</dl></details>"
    return Section("What was found", about, by_condition, cautions + glossary)


def of_study(analysis: Analysis) -> list[Section]:
    """All figures of a study with a reference arm."""
    study = analysis.study
    arms, reference = list(study.arms), study.reference or ""

    def differences(condition: Condition) -> str:
        picture = figures.differences(condition, arms, reference, study.margin, WIDTH)
        return picture and picture + tables.comparison(condition, reference).html()

    margin = ""
    if study.margin is not None:
        margin = (
            f" The grey area is the margin of {margin_name(study.margin)}, fixed before the study: a difference that "
            "lies in it with confidence loses nothing."
        )
    better = ""
    if any(versus.p_better is not None for versus in analysis.versus):
        better = " P(better) is the confidence that the true difference is above 0 under the model of the statistics."
    tests = f" Claims are corrected for {analysis.comparisons} comparisons (Holm)." if analysis.comparisons > 1 else ""
    targets = _each(analysis, lambda condition: _time_to_target(condition, arms))
    return [
        key_figures(analysis),
        accuracy_by_time(analysis),
        Section(
            "Time to target",
            "When the accuracy on held-out images first reached each target. Small marks are trials. An open mark with "
            "an arrow is a trial that never reached it: it stands where the trial ended. The large mark is the median "
            "(Kaplan-Meier), the bar its interval with the confidence that is named, which takes five seeds; an arrow "
            "means that it has no upper end.",
            targets,
        ),
        accuracy_against_time(analysis),
        Section(
            f"Differences from {reference}",
            "Each arm minus the reference with the same seed, in percentage points of test accuracy: small marks are "
            f"seeds, the large mark is their mean, the bar its 95 % interval. {_covered(analysis)} A bar that crosses "
            f"the line shows no difference.{better}{margin}{tests}",
            _each(analysis, differences),
        ),
        Section(
            f"Training speed relative to {reference}",
            "Training time of the reference divided by that of the arm, with the same seed: 2 is half the time.",
            _each(analysis, lambda condition: figures.speed_ratios(condition, arms, reference, WIDTH)),
        ),
        *of_runs(analysis),
        Section(
            "Tuning",
            f"The best accuracy on held-out images for each value of {escape(study.tuned or '')} that an arm tried. "
            "Test images choose nothing.",
            {},
            _sweeps(analysis),
        ),
    ]


def _covered(analysis: Analysis) -> str:
    if all(versus.accuracy.images for versus in analysis.versus):
        return "It is for new seeds and new test images."
    return "It is for new seeds, and for new test images where the runs recorded the answer to each image."


def key_figures(analysis: Analysis) -> Section:
    """The table of arms."""
    swatches = {arm: swatch(number) for number, arm in enumerate(analysis.study.arms)}
    return Section(
        "Key figures",
        "Means over seeds, with 95 % intervals in brackets where there are two seeds or more. Test accuracy is that of "
        f"{counted_snapshot(analysis)}. Rate is the highest learning rate of an update.",
        _each(
            analysis,
            lambda condition: tables.key_figures(condition).html([swatches[arm] for arm in condition.arms]),
        ),
    )


def accuracy_by_time(analysis: Analysis) -> Section:
    """Held-out accuracy against wall-clock."""
    arms = list(analysis.study.arms)

    def draw(condition: Condition) -> str:
        drawn = {
            kind: figures.curves(condition, arms, "validation_accuracy", "train_seconds", size)
            for kind, size in SIZES.items()
        }
        return (
            "".join(f'<div class="{kind}">{each}</div>' for kind, each in drawn.items() if each)
            or "<p>These runs hold out no images.</p>"
        )

    return Section(
        "Accuracy against wall-clock",
        "Accuracy on the held-out images after each evaluation interval. Dots and thin lines are single trials, the "
        "thick line is their mean, and the shaded area reaches from the lowest to the highest seed. Evaluation is not "
        "part of the time. Point at a dot to read it; tap an arm above to hide it.",
        _each(analysis, draw),
    )


def accuracy_against_time(analysis: Analysis) -> Section:
    """Final accuracy against training time."""
    arms = list(analysis.study.arms)

    def draw(condition: Condition) -> str:
        picture = figures.accuracy_against_time(condition, arms, (WIDTH, 320))
        return f"{picture}<p>On the front: {escape(', '.join(condition.pareto))}.</p>"

    return Section(
        "Final accuracy against training time",
        "Up and to the left is better. Small marks are trials, large ones the means, with their 95 % intervals. The "
        "dashed line joins the Pareto front: the arms that no other arm beats in both accuracy and time.",
        _each(analysis, draw),
    )


def of_runs(analysis: Analysis) -> list[Section]:
    """Figures that need no reference arm: speed, staleness, time, cost, and the curves by epoch."""
    arms = list(analysis.study.arms)

    def by_epoch(condition: Condition) -> str:
        drawn = (figures.curves(condition, arms, quantity, "epoch", (WIDTH, 260)) for quantity in figures.QUANTITIES)
        return f'<div class="four">{"".join(f"<div>{each}</div>" for each in drawn)}</div>'

    def over_seeds(name: str) -> dict[str, str]:
        of, unit, label = figures.FIGURES[name]
        return _each(
            analysis,
            lambda condition: figures.figure_rows(condition, arms, of, unit, label, WIDTH),
        )

    scaling = _each(analysis, lambda condition: _scaling(condition, arms))
    speed = {name: picture + scaling[name] for name, picture in over_seeds("images_per_second").items()}
    keys = "".join(_SWATCH.format(part) for part in figures.TIME_PARTS)
    return [
        Section(
            "Images per second and scaling",
            "Training images processed per second of training. Where arms differ in the number of workers only (and in "
            "the setting that was tuned), the second figure shows how the speed grows with them; efficiency is the "
            "speed per worker relative to the fewest workers.",
            speed,
        ),
        Section(
            "Staleness",
            "How many updates other workers had made between reading the parameters and applying a gradient, as shares "
            "of all gradients. One bar for each value.",
            _each(analysis, lambda condition: figures.staleness(condition, arms, WIDTH)),
        ),
        Section(
            "Where the workers' time went",
            f"Shares of each worker's time, mean over trials:{keys}. Waiting is time in which the worker had nothing "
            "to compute because others were not ready.",
            _each(
                analysis,
                lambda condition: (
                    figures.worker_times(condition, arms, WIDTH)
                    if any(result.worker_times for result in condition.arms.values())
                    else "<p>Not recorded by these runs.</p>"
                ),
            ),
        ),
        Section(
            "Cost in worker-hours",
            "Workers times hours of training: what the same run would cost where workers are paid by the hour.",
            over_seeds("worker_hours"),
        ),
        Section(
            "Loss and accuracy by epoch",
            "The same passes over the data side by side, whatever time they took: loss and accuracy on training images "
            f"(as augmented){' and on held-out images' if analysis.held_out_images else ''}.",
            _each(analysis, by_epoch),
        ),
    ]


def all_trials(analysis: Analysis) -> Section:
    """The table of trials."""
    return Section(
        "All trials",
        "In the order in which they ended. A failed trial has its reason. Load is the share of the machine's cores "
        "that were busy before the start.",
        {},
        tables.trials(analysis).html(),
    )


def setup(study: str, environment: Mapping[str, str]) -> Section:
    """What it takes to repeat the study: its settings, machine, versions and command."""
    machine = tables.Table(["", ""], [[tables.Cell(n), tables.Cell(v, "text")] for n, v in environment.items()])
    return Section(
        "How it was made",
        "",
        {},
        f"{machine.html()}<details><summary>Settings of the study (study.yaml)</summary><pre>{escape(study)}</pre>"
        "</details>",
    )


def _each(analysis: Analysis, draw: Callable[[Condition], str]) -> dict[str, str]:
    """What `draw` makes of each condition that has a finished trial, by its name."""
    return {condition.name: draw(condition) for condition in analysis.conditions if condition.arms}


def _list(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def _time_to_target(condition: Condition, arms: Sequence[str]) -> str:
    drawn = figures.time_to_target(condition, arms, WIDTH)
    shown = (f"<h3>{target_name(target)} accuracy on held-out images</h3>{each}" for target, each in drawn.items())
    return "".join(shown) + (tables.targets(condition).html() if drawn else "")


def _scaling(condition: Condition, arms: Sequence[str]) -> str:
    def of_group(number: int) -> str:
        group = condition.scaling[number]
        content = [
            [
                tables.Cell(arm),
                tables.Cell(str(workers)),
                tables.Cell(percent(group.efficiency[arm])),
            ]
            for arm, workers in group.arms.items()
        ]
        table = tables.Table(["arm", "workers", "efficiency"], content).html()
        return figures.scaling(condition, arms, number, (WIDTH, 280)) + table

    return "".join(map(of_group, range(len(condition.scaling))))


def _sweeps(analysis: Analysis) -> str:
    arms = list(analysis.study.arms)
    every = [p.held_out_accuracy for sweep in analysis.sweeps.values() for p in sweep.points if p.held_out_accuracy]

    def of_arm(arm: str) -> str:
        tried = analysis.sweeps[arm]
        return f"<h3>{escape(arm)}</h3>" + figures.sweep(arm, arms.index(arm), tried, every, WIDTH)

    return "".join(map(of_arm, analysis.sweeps))

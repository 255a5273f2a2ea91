"""What a study says in plain sentences: only what its intervals carry, and what limits it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from psys.tradeoff.analysis import Analysis, ArmResult, Condition, Sweep, Versus
from psys.tradeoff.statistics import SEEDS_FOR_A_CLAIM, Ratio
from psys.tradeoff.words import (
    count,
    duration,
    in_letters,
    join,
    margin_name,
    p_value,
    percent,
    points,
    target_name,
    times,
)

BUSY = 0.25
"""Share of the cores in use before a trial, above which the trial shared the machine with something else."""
FEW_IMAGES = 2000
"""With fewer test images, their choice alone moves an accuracy by more than a point (one standard error)."""


@dataclass(frozen=True)
class Findings:
    """Sentences on the study as a whole, on each condition, and on what limits the findings."""

    about: tuple[str, ...]
    by_condition: Mapping[str, tuple[str, ...]]
    cautions: tuple[str, ...]


def findings(analysis: Analysis) -> Findings:
    """The sentences of a study with a reference arm."""
    return Findings(
        tuple(_about(analysis)),
        {condition.name: tuple(_of_condition(analysis, condition)) for condition in analysis.conditions},
        tuple(_cautions(analysis)),
    )


def _about(analysis: Analysis) -> list[str]:
    study = analysis.study
    compared = [trial for trial in study.trials if trial.tuning is None]
    done = sum(trial.outcome is not None for trial in compared)
    planned = len(study.arms) * len(study.conditions) * len(study.seeds)
    return [
        f"{count(len(study.arms), 'arm')} ({join(list(study.arms))}) under {count(len(study.conditions), 'condition')} "
        f"({join(study.conditions)}), {count(len(study.seeds), 'seed')} each: {done} of {planned} trials finished.",
        f"Every arm is compared with {study.reference}, seed by seed: the same seed has the same initial weights and "
        "order of data in all arms.",
        *_images(analysis),
    ]


def _images(analysis: Analysis) -> list[str]:
    if not analysis.outcomes:
        return []
    tested, held_out = f"{analysis.outcomes[0].test_images:,} test images", analysis.held_out_images
    if not held_out:
        return [f"No images were held out to choose a snapshot: final accuracy is that of the last one on {tested}."]
    return [
        f"Accuracy during training is that on {held_out:,} held-out images, which choose the best snapshot; final "
        f"accuracy is that of this snapshot on {tested}."
    ]


def counted_snapshot(analysis: Analysis) -> str:
    """The snapshot whose test accuracy counts: the runs' own choice."""
    held_out = {outcome.held_out_images > 0 for outcome in analysis.outcomes}
    if held_out == {False}:
        return "the last snapshot, for no images were held out to choose one"
    if len(held_out) == 2:
        return "the best snapshot on held-out images, or the last one of a run without held-out images"
    return "the best snapshot, which is chosen on held-out images"


def _of_condition(analysis: Analysis, condition: Condition) -> list[str]:
    reference = analysis.study.reference or ""
    if reference not in condition.arms:
        return [f"{reference} has no finished trial here: nothing is compared."]
    sentences = [
        sentence
        for arm, result in condition.arms.items()
        if arm != reference
        for sentence in (
            [_speed(arm, reference, result, condition.arms[reference]), *_accuracy(analysis, arm, result.versus)]
            if result.versus
            else [f"{arm} has no seed in common with {reference}: the two are not compared."]
        )
    ]
    absent = [arm for arm in analysis.study.arms if arm not in condition.arms]
    sentences += _targets(condition, reference)
    sentences += [_late(arm, result) for arm, result in condition.arms.items() if result.late]
    return [*sentences, *(f"{arm} has no finished trial here." for arm in absent if arm not in analysis.untuned)]


def _late(arm: str, result: ArmResult) -> str:
    by_worker = join([f"{batches:,} of {worker}" for worker, batches in result.late.items()])
    trials = count(len(result.seconds.by_seed), "trial")
    return f"In {trials} of {arm}, these batches came too late and were computed again: {by_worker}."


def _speed(arm: str, reference: str, result: ArmResult, other: ArmResult) -> str:
    assert result.versus
    ratio = result.versus.times_as_fast
    if ratio.low is None or ratio.high is None:
        return (
            f"{arm} trained for {duration(result.seconds.summary.mean)}, {reference} for "
            f"{duration(other.seconds.summary.mean)}: one seed in common, so nothing is claimed."
        )
    if ratio.low <= 1 <= ratio.high:
        return f"No difference in training time between {arm} and {reference} is shown: {_ratio(ratio)}."
    if ratio.mean > 1:
        return f"{arm} trained {times(ratio.mean)} times as fast as {reference} ({_interval(ratio)})."
    slower = Ratio(1 / ratio.mean, 1 / ratio.high, 1 / ratio.low, ratio.seeds)
    return f"{arm} trained {times(slower.mean)} times as long as {reference} ({_interval(slower)})."


def _ratio(ratio: Ratio) -> str:
    return f"{times(ratio.mean)} times as fast ({_interval(ratio)})"


def _interval(ratio: Ratio) -> str:
    assert ratio.low is not None
    assert ratio.high is not None
    return f"95 % interval {times(ratio.low)} to {times(ratio.high)}, {count(ratio.seeds, 'seed')}"


def _accuracy(analysis: Analysis, arm: str, versus: Versus) -> list[str]:
    """Nothing where all arms have too few seeds: one sentence says that of the whole study."""
    reference, claim = analysis.study.reference, versus.claim
    if claim.p is None:
        seeds = count(len(versus.seeds), "seed")
        sentence = f"The accuracy of {arm} against {reference} is {claim.text} ({seeds})."
        return [sentence] if _most_seeds(analysis) >= SEEDS_FOR_A_CLAIM else []
    assert versus.interval
    low, high = (points(end) for end in versus.interval)
    figures = f"95 % interval {low} to {high} points, {count(len(versus.seeds), 'seed')}"
    tested = f"{figures}, {p_value(claim.p)} corrected for {count(analysis.comparisons, 'comparison')}"
    difference = f"{100 * abs(versus.accuracy.mean):.1f} points"
    match claim.verdict:
        case "better":
            return [f"{arm} is more accurate than {reference}, by {difference} ({tested})."]
        case "worse":
            return [f"{arm} is less accurate than {reference}, by {difference} ({tested})."]
        case "equivalent":
            margin = margin_name(analysis.study.margin or 0)
            return [f"{arm} loses nothing against {reference} within the margin of {margin} ({figures})."]
    return [f"Whether {arm} is more or less accurate than {reference} is not decided ({tested})."]


def _targets(condition: Condition, reference: str) -> list[str]:
    sentences = []
    for number, target in enumerate(condition.arms[reference].targets):
        name = target_name(target.target)
        results = {arm: each.targets[number] for arm, each in condition.arms.items() if each.targets}
        for arm, result in results.items():
            ratio = result.times_as_fast if arm != reference else None
            if ratio and ratio.low is not None and ratio.high is not None and not ratio.low <= 1 <= ratio.high:
                faster = ratio if ratio.mean > 1 else Ratio(1 / ratio.mean, 1 / ratio.high, 1 / ratio.low, ratio.seeds)
                word = "sooner" if ratio.mean > 1 else "later"
                sentences.append(
                    f"{arm} reached {name} accuracy on held-out images {word} than {reference}, by a factor of "
                    f"{times(faster.mean)} ({_interval(faster)})."
                )
        never = [arm for arm, result in results.items() if not result.summary.reached]
        some = [
            f"{arm} in {result.summary.reached} of {count(result.summary.trials, 'trial')}"
            for arm, result in results.items()
            if 0 < result.summary.reached < result.summary.trials
        ]
        if len(never) == len(results):
            sentences.append(f"No arm reached {name} accuracy on held-out images.")
        elif never or some:
            reached = f"{name} accuracy on held-out images was reached by {join(some)}" if some else ""
            missed = f"{name} accuracy on held-out images was never reached by {join(never)}" if never else ""
            sentences += [f"{text}." for text in (reached, missed) if text]
    return sentences


def _differing(analysis: Analysis) -> list[str]:
    """In what the trials that are done differ beside their settings."""
    done = [trial for trial in analysis.study.trials if trial.outcome]
    values: dict[str, set[str | None]] = {
        "host": {trial.host for trial in done},
        "processor": {outcome.environment.get("processor") for outcome in analysis.outcomes},
        "commit": {outcome.environment.get("commit") for outcome in analysis.outcomes},
        "version of Python": {outcome.environment.get("python") for outcome in analysis.outcomes},
        "package versions": {json.dumps(outcome.environment.get("packages")) for outcome in analysis.outcomes},
    }
    return [name for name, found in values.items() if len(found) > 1]


def _most_seeds(analysis: Analysis) -> int:
    """Of a comparison."""
    return max((len(versus.seeds) for versus in analysis.versus), default=0)


def _contained(analysis: Analysis) -> str:
    contained = [versus.accuracy.images is not None for versus in analysis.versus if versus.interval]
    if all(contained):
        return "those of differences do." if contained else "and there are none of differences."
    if any(contained):
        return "those of differences only where the runs recorded the answer to each test image."
    return "nor do those of differences: the runs did not record the answer to each test image."


def _at_the_edge(sweep: Sweep) -> bool:
    tried = [point.value for point in sweep.points]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in tried)
    return numbers and len(set(tried)) > 1 and sweep.chosen in (min(tried), max(tried))


def _cautions(analysis: Analysis) -> list[str]:
    study = analysis.study
    results = [(condition, arm, each) for condition in analysis.conditions for arm, each in condition.arms.items()]
    seeds = _most_seeds(analysis)
    done = [trial for trial in study.trials if trial.outcome]
    images = sorted({trial.outcome.test_images for trial in done if trial.outcome})
    cautions = []
    if not seeds and len(study.arms) > 1:
        cautions.append(
            f"Nothing is compared: no seed has a finished trial both of {study.reference} and of another arm."
        )
    elif seeds < SEEDS_FOR_A_CLAIM and len(study.arms) > 1:
        carry = "carries" if seeds == 1 else "carry"
        cautions.append(
            f"{in_letters(seeds).capitalize()} seed{'' if seeds == 1 else 's'} {carry} no claim on accuracy: the "
            f"differences shown are what was measured, and may be chance. A claim takes at least {SEEDS_FOR_A_CLAIM} "
            "seeds, and 10 or more for differences below 3 points."
        )
    if study.targets and analysis.outcomes and not analysis.held_out_images:
        cautions.append("No time to target is known, because no images were held out.")
    if analysis.failed:
        cautions.append(
            f"{count(len(analysis.failed), 'trial')} failed; the table of trials says why. A seed whose trial failed "
            "in one of two arms is left out of their comparison."
        )
    unpaired = [
        f"{arm} ({condition.name}) seed {join(result.unpaired)}"
        for condition, arm, result in results
        if result.unpaired
    ]
    if unpaired:
        cautions.append(f"Left out of the comparison with {study.reference}, for lack of a pair: {join(unpaired)}.")
    cautions += [
        f"{arm} has no value of {study.tuned}, for all of its tuning trials failed: it takes no part."
        for arm in analysis.untuned
    ]
    if analysis.missing:
        cautions.append(f"This report is of a part: {len(analysis.missing)} of the planned trials have not ended.")
    ratios = [versus.times_as_fast for versus in analysis.versus]
    ratios += [target.times_as_fast for *_, result in results for target in result.targets if target.times_as_fast]
    if (intervals := sum(ratio.low is not None for ratio in ratios)) > 1:
        cautions.append(
            f"The {intervals} comparisons in time (training time, time to target) have one 95 % interval each, not "
            "corrected for their number: the more of them, the likelier is one that shows a difference by chance."
        )
    if images and images[0] < FEW_IMAGES:
        error = percent((0.25 / images[0]) ** 0.5)
        cautions.append(
            f"There are {images[0]:,} test images: their choice alone moves an accuracy near 50 % by {error} "
            f"(one standard error). The intervals of single arms do not contain it, {_contained(analysis)}"
        )
    if study.tuned is None and len(study.arms) > 1:
        cautions.append("No setting was tuned: the arms are compared at the settings given, which may suit one better.")
    if edges := [f"{arm} ({sweep.chosen})" for arm, sweep in analysis.sweeps.items() if _at_the_edge(sweep)]:
        cautions.append(
            f"The chosen {study.tuned} is the lowest or the highest value that was tried, and one beyond may be "
            f"better: {join(edges)}."
        )
    if busy := [trial.name for trial in study.trials if (trial.load or 0) > BUSY]:
        cautions.append(
            f"The machine was busy with something else before {len(busy)} of {count(len(study.trials), 'trial')} (more "
            f"than {100 * BUSY:g} % of its cores): their times may be too long."
        )
    if differ := _differing(analysis):
        cautions.append(f"The trials differ in {join(differ)}: differences between arms may come from this.")
    if diverged := [trial.name for trial in done if trial.outcome and trial.outcome.diverged is not None]:
        cautions.append(f"The training of {join(diverged)} diverged: a snapshot from before that counts.")
    return cautions

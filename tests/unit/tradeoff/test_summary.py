"""What the summary says, and what it must not say."""

import re
from dataclasses import replace

import numpy as np
import pytest

from psys.tradeoff.analysis import analyze
from psys.tradeoff.outcome import EndedTrial
from psys.tradeoff.report import render
from psys.tradeoff.summary import Findings, findings
from psys.tradeoff.words import confidence, duration, join, p_value, points
from tests.support.outcomes import bits, outcome, study, trial

CLAIMS = re.compile(r"more accurate|less accurate|loses nothing")


def planted(seeds: int, effect: float, images: int = 2000, noise: float = 0.02) -> list[EndedTrial]:
    """Two arms, the second right more often by `effect`, on images of their own difficulty; and twice as fast."""
    rng = np.random.default_rng(3)
    difficulty = rng.random(images)
    return [
        trial(
            arm,
            seed,
            outcome(seconds=each + seed / 10, right=difficulty + noise * rng.standard_normal(images) < 0.5 + more),
        )
        for arm, more, each in (("sync", 0.0, 20.0), ("async", effect, 10.0))
        for seed in range(seeds)
    ]


def of(trials: list[EndedTrial], **fields: object) -> Findings:
    return findings(analyze(study(trials, **fields)))


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_three_seeds_or_fewer_claim_nothing_on_accuracy(seeds: int) -> None:
    found = of(planted(seeds, effect=0.2), margin=0.01)
    assert not [sentence for sentence in found.by_condition["uniform"] if CLAIMS.search(sentence)]
    words = {1: "One seed carries", 2: "Two seeds carry", 3: "Three seeds carry"}[seeds]
    assert found.cautions[0].startswith(f"{words} no claim on accuracy")


def test_speed_is_said_with_its_interval_and_seeds() -> None:
    (sentence,) = of(planted(3, effect=0.0)).by_condition["uniform"]
    assert re.fullmatch(
        r"async trained 1\.9\d times as fast as sync \(95 % interval 1\.9\d to 2\.0\d, 3 seeds\)\.", sentence
    ), sentence


def test_a_slower_arm_is_said_to_take_longer() -> None:
    trials = [
        trial(arm, s, outcome(seconds=each + s)) for arm, each in (("sync", 20.0), ("one", 40.0)) for s in (0, 1, 2)
    ]
    (sentence,) = of(trials).by_condition["uniform"]
    assert sentence.startswith("one trained 1.95 times as long as sync (95 % interval 1.")


def test_an_interval_that_holds_one_shows_no_difference_in_time() -> None:
    seconds = {"sync": (20.0, 22.0, 24.0), "async": (24.0, 20.0, 22.0)}
    trials = [trial(arm, s, outcome(seconds=each)) for arm, times in seconds.items() for s, each in enumerate(times)]
    (sentence,) = of(trials).by_condition["uniform"]
    assert sentence.startswith("No difference in training time between async and sync is shown: 1.00 times as fast (")


def test_one_seed_claims_no_speed() -> None:
    (sentence,) = of(planted(1, effect=0.0)).by_condition["uniform"]
    assert sentence == "async trained for 10.0 s, sync for 20.0 s: one seed in common, so nothing is claimed."


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (0.1, r"async is more accurate than sync, by (9|10)\.\d points \(95 % interval \+\d+\.\d to \+1\d\.\d points"),
        (-0.1, r"async is less accurate than sync, by (9|10)\.\d points"),
        (0.0, r"async loses nothing against sync within the margin of 2 points \(95 % interval"),
    ],
)
def test_five_seeds_carry_a_planted_effect(effect: float, words: str) -> None:
    found = of(planted(5, effect), margin=0.02)
    assert [sentence for sentence in found.by_condition["uniform"] if re.match(words, sentence)]


def test_equivalence_needs_a_margin_fixed_before() -> None:
    sentences = of(planted(5, effect=0.0)).by_condition["uniform"]
    assert not [sentence for sentence in sentences if "loses nothing" in sentence]
    assert [sentence for sentence in sentences if "is not decided" in sentence]


def test_targets_that_were_never_or_not_always_reached_are_said() -> None:
    trials = [
        trial("sync", 0, outcome((0.3, 0.5))),
        trial("sync", 1, outcome((0.3, 0.4))),
        trial("async", 0, outcome((0.2, 0.3))),
        trial("async", 1, outcome((0.2, 0.3))),
    ]
    sentences = of(trials, targets=(0.3, 0.5, 0.9)).by_condition["uniform"]
    assert "50 % accuracy on held-out images was reached by sync in 1 of 2 trials." in sentences
    assert "50 % accuracy on held-out images was never reached by async." in sentences
    assert "No arm reached 90 % accuracy on held-out images." in sentences
    later = "async reached 30 % accuracy on held-out images later than sync, by a factor of 2.00"
    assert [sentence for sentence in sentences if "30 %" in sentence] == [
        f"{later} (95 % interval 2.00 to 2.00, 2 seeds)."
    ]


def test_late_batches_are_counted_by_worker() -> None:
    trials = [
        trial("sync", 0, outcome(late={"worker0": (3, 7), "worker2": (5,)})),
        trial("sync", 1, outcome(late={"worker0": (4,)})),
        trial("async", 0, outcome()),
    ]
    late = "In 2 trials of sync, these batches came too late and were computed again: 3 of worker0 and 1 of worker2."
    assert [sentence for sentence in of(trials).by_condition["uniform"] if "late" in sentence] == [late]


def test_limits_name_failures_missing_pairs_load_divergence_and_few_images() -> None:
    trials = [
        trial("sync", 0, outcome(right=bits(0.5, 500)), load=0.9),
        trial("sync", 1, outcome(right=bits(0.5, 500), diverged=1.5)),
        trial("async", 0, None),
        trial("async", 1, outcome(right=bits(0.5, 500))),
    ]
    said = "\n".join(of(trials, seeds=(0, 1, 2)).cautions)
    for words in (
        "1 trial failed",
        "async (uniform) seed 0",
        "2 of the planned trials have not ended",
        "There are 500 test images",
        "near 50 % by 2.2 %",
        "intervals of single arms do not contain it, and there are none of differences",
        "No setting was tuned",
        "busy with something else before 1 of 4 trials",
        "The training of sync.uniform.seed1 diverged",
    ):
        assert words in said


def test_a_reference_without_a_trial_compares_nothing() -> None:
    trials = [trial("sync", 0, None), trial("async", 0, outcome())]
    assert of(trials).by_condition["uniform"] == ("sync has no finished trial here: nothing is compared.",)


def test_numbers_in_words() -> None:
    assert [duration(seconds) for seconds in (3.25, 99.94, 123.4, 900.0, 9000.0)] == [
        *("3.2 s", "99.9 s", "123 s"),
        *("15.0 min", "2.50 h"),
    ]
    assert [confidence(p) for p in (0.0, 0.25, 0.99999)] == ["< 0.1 %", "25.0 %", "> 99.9 %"]
    assert [join(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert (points(-0.0123), points(0.004), p_value(0.0001), p_value(0.0123)) == (
        "−1.2",
        "+0.4",
        "p < 0.001",
        "p = 0.012",
    )


def test_without_held_out_images_the_last_snapshot_counts_and_no_time_to_target_is_known() -> None:
    trials = [trial(arm, s, outcome((None, None), held_out_images=0)) for arm in ("sync", "async") for s in (0, 1)]
    analysis = analyze(study(trials, targets=(0.5,)))
    found = findings(analysis)
    last = "No images were held out to choose a snapshot: final accuracy is that of the last one on 200 test images."
    assert found.about[-1] == last
    assert "No time to target is known, because no images were held out." in found.cautions
    page = render(analysis, "", {})["report.html"]
    assert "Test accuracy is that of the last snapshot, for no images were held out to choose one." in page
    assert "<dt>held-out images" not in page
    assert "chosen on held-out" not in page
    both = analyze(study([*trials, trial("ssp", 0, outcome())], targets=(0.5,)))
    assert "or the last one of a run without held-out images" in render(both, "", {})["report.html"]


def test_an_arm_without_a_claim_says_why_where_others_have_one() -> None:
    trials = [*planted(5, effect=0.1), *(trial("ssp", s, outcome(right=bits(0.5, 2000))) for s in (0, 1, 2))]
    trials += [trial("late", s, replace(outcome(right=bits(0.5, 2000)), right=None)) for s in range(5)]
    sentences = of(trials).by_condition["uniform"]
    assert [sentence for sentence in sentences if "is undecided" in sentence] == [
        "The accuracy of ssp against sync is undecided: too few seeds for a claim on accuracy (3 seeds).",
        "The accuracy of late against sync is undecided: right/wrong answers by test image were not recorded "
        "(5 seeds).",
    ]


def test_without_a_pair_nothing_is_compared() -> None:
    cautions = of([trial("sync", 0, outcome()), trial("async", 1, outcome())]).cautions
    assert cautions[0] == "Nothing is compared: no seed has a finished trial both of sync and of another arm."
    assert not [sentence for sentence in cautions if "no claim on accuracy" in sentence]


@pytest.mark.parametrize(("seeds", "said"), [(1, []), (2, ["The 3 comparisons in time"])])
def test_number_of_intervals_in_time_is_said_for_they_are_not_corrected(seeds: int, said: list[str]) -> None:
    trials = [trial(arm, s, outcome((0.3, 0.5))) for arm in ("sync", "async") for s in range(seeds)]
    found = of(trials, targets=(0.3, 0.5, 0.9)).cautions
    assert [sentence[: len("The 3 comparisons in time")] for sentence in found if "not corrected" in sentence] == said


def test_an_arm_without_a_tuned_value_is_said_to_take_no_part() -> None:
    trials = [trial("sync", 0, outcome()), trial("async", 0, None, tuning=0.1), trial("sync", 0, outcome(), tuning=0.1)]
    found = of(trials, tuned="rate", tuning_trials=1)
    assert "async has no value of rate, for all of its tuning trials failed: it takes no part." in found.cautions
    assert not [sentence for sentence in found.cautions if "have not ended" in sentence]
    assert found.by_condition["uniform"] == ()


@pytest.mark.parametrize(("chosen", "at_the_edge"), [(0.1, True), (0.2, False), (0.4, True)])
def test_a_tuned_value_that_is_the_lowest_or_the_highest_tried_is_said(chosen: float, at_the_edge: bool) -> None:
    tried = [trial("sync", 9, outcome(), tuning=value) for value in (0.1, 0.2, 0.4)]
    settings = {"snapshot_epochs": 1.0, "schedule.learning_rate": chosen}
    cautions = of([*tried, trial("sync", 0, outcome(settings=settings))], tuned="schedule.learning_rate").cautions
    assert any(f"one beyond may be better: sync ({chosen})." in sentence for sentence in cautions) == at_the_edge

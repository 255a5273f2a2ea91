from psys.tradeoff.plan import choose, study_trials, tuning_trials
from tests.support.studies import study

TUNING = {"setting": "schedule.learning_rate", "values": {"first": [0.1, 0.2], "second": [0.3, 0.4]}, "seeds": 2}


def test_arms_alternate_and_seeds_come_last() -> None:
    trials = study_trials(study(seeds=[5, 2], stragglers={"even": {}, "uneven": {}}), {})
    assert [trial.name for trial in trials] == [
        *("first.even.seed5", "second.even.seed5", "first.uneven.seed5", "second.uneven.seed5"),
        *("first.even.seed2", "second.even.seed2", "first.uneven.seed2", "second.uneven.seed2"),
    ]


def test_trials_of_a_seed_differ_in_the_settings_of_their_arms_only() -> None:
    first, second = study_trials(study(), {})
    assert first.settings | {"mode": "async"} == second.settings
    assert (first.settings["seed"], first.settings["evaluate_every"], first.tuning) == (0, 0, None)


def test_each_arm_tries_its_values_in_the_first_condition() -> None:
    config = study(tuning=TUNING, stragglers={"even": {}, "uneven": {}})
    trials = tuning_trials(config)
    assert [trial.name for trial in trials[:4]] == [
        *(
            "first.even.seed1000.value0",
            "second.even.seed1000.value0",
            "first.even.seed1000.value1",
            "second.even.seed1000.value1",
        ),
    ]
    assert [trial.tuning for trial in trials] == 2 * [0.1, 0.3, 0.2, 0.4]
    assert [trial.settings["schedule"]["learning_rate"] for trial in trials] == 2 * [0.1, 0.3, 0.2, 0.4]
    assert tuning_trials(study()) == []


def test_the_value_of_the_highest_mean_accuracy_is_chosen_and_a_failure_counts_as_zero() -> None:
    config = study(tuning=TUNING)
    accuracies: dict[str, float | None] = {trial.name: 0.5 for trial in tuning_trials(config)}
    accuracies |= {"first.uniform.seed1000.value1": 0.9, "first.uniform.seed1001.value1": None}
    accuracies |= {"second.uniform.seed1001.value1": 0.6}
    assert choose(config, accuracies) == {"first": 0.1, "second": 0.4}
    chosen = study_trials(config, {"first": 0.1, "second": 0.4})
    assert [trial.settings["schedule"]["learning_rate"] for trial in chosen] == [0.1, 0.4]
    assert {trial.tuning for trial in chosen} == {None}


def test_an_arm_of_which_every_trial_failed_has_no_value() -> None:
    config = study(tuning=TUNING)
    accuracies = {trial.name: None if trial.arm == "first" else 0.5 for trial in tuning_trials(config)}
    assert choose(config, accuracies) == {"second": 0.3}

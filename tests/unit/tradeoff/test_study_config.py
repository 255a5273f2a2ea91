from pathlib import Path
from typing import Any

import pytest

from psys.config import parse, read_yaml, validate, write_yaml
from psys.errors import PsysError
from psys.run.config import RunConfig
from psys.tradeoff.config import StudyCommand, StudyConfig, nested
from tests.support.processes import ROOT
from tests.support.studies import study, study_settings

LEARNING_RATE = "schedule.learning_rate"


@pytest.mark.parametrize("name", [file.stem for file in StudyConfig.named_files])
def test_every_study_in_the_repository_is_valid(name: str) -> None:
    parse(StudyCommand, ["--config", name], "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"arms": {"a": {"opimizer.momentum": 0.5}}},
            "unknown setting 'opimizer', did you mean 'optimizer.*in arm 'a'",
        ),
        ({"arms": {"a": {"lr": 0.5}}}, "unknown setting 'lr', did you mean 'schedule.learning_rate'.*arm 'a'"),
        ({"arms": {"a": {"resume": "runs/r"}}}, "unknown setting 'resume'.*arm 'a'"),
        ({"arms": {"a": {"seed": 1}}}, "'seed' cannot be set in arm 'a': seeds are the study's 'seeds'"),
        ({"arms": {"a": {"validation_share": 0.5}}}, "'validation_share' cannot be set in arm 'a'"),
        ({"arms": {"a": {"store": "stores/b"}}}, "'store' cannot be set in arm 'a': arms are compared image by image"),
        ({"arms": {"a": {"source": "b"}}}, "'source' cannot be set in arm 'a'"),
        ({"arms": {"a": {"mode": "fast"}}}, "'mode'.*got 'fast'.*arm 'a'"),
        ({"arms": {"a": {"workers": None}}}, "set 'workers' in base or in arm 'a'"),
        ({"arms": {"a": {"model": "resnet9"}}}, "unknown model 'resnet9'.*arm 'a'"),
        ({"arms": {"a": {}, "b": {"epochs": 2}}}, "arm 'b' has 2 evaluation points, arm 'a' has 1"),
        ({"arms": {"a b": {}}}, "'a b' cannot name a directory"),
        ({"arms": {"..": {}}}, "'..' cannot name a directory"),
        ({"arms": {"": {}}}, "'' cannot name a directory"),
        ({"arms": {"a" * 65: {}}}, "arm 'a{20}[.]{3}' is too long to name files: at most 64 bytes"),
        ({"stragglers": {"é" * 33: {}}}, "condition 'é{20}[.]{3}' is too long to name files: at most 64 bytes"),
        ({"arms": {}}, "'arms'"),
        ({"arms": {"a": 3}}, "'arms.a'.*got 3 [(]in"),
        ({"stragglers": {"a/b": {}}}, "'a/b' cannot name a directory"),
        ({"stragglers": {"x": {"fault": []}}}, "unknown setting 'fault', did you mean 'faults'.*condition 'x'"),
        (
            {"stragglers": {"x": {"faults": [{"worker": 1, "step": 0, "kind": "kill"}]}}},
            "condition 'x' names worker 1, but arm 'first' has workers 0 to 0",
        ),
        ({"base": {"seed": 1}}, "'seed' cannot be set in base"),
        ({"base": {"faults": "f.yaml"}}, "'faults' cannot be set in base"),
        ({"base": {"workers": 1, "model": "resnet9"}}, "unknown model 'resnet9'.*in base"),
        ({"arms": {"a": {"optimizer": 3, "optimizer.momentum": 0.9}}}, "'optimizer' is set twice, .*in arm 'a'"),
        (
            {"base": {"workers": 1, "schedule": {"learning_rate": 0.1}, LEARNING_RATE: 0.2}},
            "'schedule.learning_rate' is set twice, in a group and by a dotted name [(]in base",
        ),
        ({"seeds": []}, "'seeds'"),
        ({"seeds": True}, "'seeds': expected a list of whole numbers from 0 on, or how many: 10, got True"),
        ({"seeds": [True]}, "'seeds': expected a list of whole numbers from 0 on, or how many: 10"),
        ({"seeds": 3.5}, "'seeds': expected a list of whole numbers from 0 on, or how many: 10, got 3.5"),
        ({"seeds": 0}, "'seeds': a study needs at least one seed"),
        ({"seeds": [3, 4, 3]}, "'seeds' has 3 more than once"),
        ({"seeds": [-1]}, "'seeds.0'"),
        ({"targets": [1.5]}, "'targets.0'.*got 1.5"),
        ({"targets": [0.5, 0.5]}, "'targets' has 0.5 more than once"),
        ({"targets": [0]}, "'targets.0'.*got 0"),
        ({"margin": 2}, "'margin'"),
        ({"reference": "third"}, "'reference' is 'third', expected an arm: first, second"),
        ({"name": "../s"}, "'name'"),
        ({"tuning": {"setting": "schedule.lr", "values": [1]}}, "unknown setting 'schedule.lr', did you mean"),
        ({"tuning": {"setting": LEARNING_RATE, "values": []}}, "'tuning.values"),
        ({"tuning": {"setting": LEARNING_RATE, "values": ["x"]}}, "got 'x'.*tuning of arm 'first'"),
        ({"tuning": {"setting": LEARNING_RATE, "values": [0.1, None]}}, "'tuning.values' has null"),
        ({"tuning": {"setting": "seed", "values": [1]}}, "'seed' cannot be set in tuning: seeds are the study's"),
        ({"tuning": {"setting": "store", "values": ["a"]}}, "'store' cannot be set in tuning: arms are compared image"),
        (
            {"tuning": {"setting": "workers", "values": [1, 2]}},
            "'workers' cannot be set in tuning: make an arm of each",
        ),
        ({"tuning": {"setting": LEARNING_RATE, "values": [1, 1]}}, "'tuning.values' has a value more than once"),
        ({"tuning": {"setting": LEARNING_RATE, "values": {"first": [1]}}}, "values for each of first, second"),
        (
            {"tuning": {"setting": LEARNING_RATE, "values": {"first": [1, 2], "second": [1]}}},
            "'tuning.values' needs equally many values",
        ),
        ({"tuning": {"setting": LEARNING_RATE, "values": [1], "seeds": [1, 1]}}, "'tuning.seeds' has 1 more than once"),
        ({"tuning": {"setting": LEARNING_RATE, "values": [1], "seeds": [7, 0]}}, "'tuning.seeds' has 0, which is in"),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PsysError, match=message) as refused:
        study(**changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("missing", ["name", "arms", "seeds"])
def test_a_setting_that_every_study_needs(missing: str) -> None:
    settings = study_settings("no/store")
    del settings[missing]
    with pytest.raises(PsysError, match=f"setting '{missing}': Field required [(]in test"):
        validate(StudyConfig, settings, "test")


def test_tuning_without_held_out_images_is_refused() -> None:
    base = {"workers": 1, "validation_share": 0}
    with pytest.raises(PsysError, match="test images choose nothing"):
        study(base=base, tuning={"setting": LEARNING_RATE, "values": [1]})


def test_two_arms_of_one_name_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("name: s\nseeds: 1\narms:\n  sync: {mode: sync}\n  sync: {mode: async}\n")
    with pytest.raises(PsysError, match=r"'sync' is there twice.*line 5") as refused:
        parse(StudyCommand, ["--config", str(file)], "test")
    assert "\n" not in str(refused.value)


def test_arms_are_settings_over_the_base_nested_or_dotted() -> None:
    config = study(
        base={"workers": 2, "schedule.learning_rate": 0.1, "optimizer": {"momentum": 0.5}},
        arms={"a": {"optimizer": {"nesterov": False}}, "b": {"optimizer.momentum": 0.25, "workers": 3}},
    )
    a, b = config.run_config("a"), config.run_config("b")
    assert (a.workers, a.schedule.learning_rate, a.optimizer.momentum, a.optimizer.nesterov) == (2, 0.1, 0.5, False)
    assert (b.workers, b.schedule.learning_rate, b.optimizer.momentum) == (3, 0.1, 0.25)
    assert config.reference == "a"
    assert a.evaluate_every == 0
    assert nested({"a.b.c": 1, "a": {"d": 2}}) == {"a": {"b": {"c": 1}, "d": 2}}


@pytest.mark.parametrize(("given", "seeds"), [("3", (0, 1, 2)), ("4,7", (4, 7)), ("[5]", (5,))])
def test_a_flag_gives_the_number_of_seeds_or_their_list(tmp_path: Path, given: str, seeds: tuple[int, ...]) -> None:
    write_yaml(study(), tmp_path / "s.yaml")
    assert parse(StudyCommand, ["--config", str(tmp_path / "s.yaml"), "--seeds", given], "test").seeds == seeds


def test_help_has_no_group_without_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(StudyCommand, ["--config", "tradeoff", "--help"], "test")
    shown = capsys.readouterr().out
    assert "--tuning" in shown
    assert "tuning options" not in shown


def test_recorded_settings_are_those_of_the_study(tmp_path: Path) -> None:
    config = StudyCommand(**study_settings("no/store", targets=[0.5]), dry_run=True).study()
    write_yaml(config, tmp_path / "study.yaml")
    recorded = read_yaml(tmp_path / "study.yaml")
    assert "dry_run" not in recorded
    assert (recorded["reference"], recorded["seeds"]) == ("first", [0])
    assert validate(StudyConfig, recorded, "there") == config


def test_arms_of_the_ablation_make_as_many_updates_of_as_many_views() -> None:
    config = parse(StudyCommand, ["--config", "ablation"], "test")
    images = round(2000 * (1 - config.run_config("trio").validation_share))  # of the sample
    work = set()
    for arm in config.arms:
        run = config.run_config(arm)
        assert run.workers
        assert images % (run.batch_size * run.workers) == 0
        updates = images // (run.batch_size * run.workers)
        work.add(
            (updates * run.epochs, updates * run.snapshot_epochs, run.workers * run.batch_size * run.augment.views)
        )
    assert len(work) == 1


def test_every_config_in_the_repository_has_a_command() -> None:
    named = {file.resolve() for file in (*RunConfig.named_files, *StudyConfig.named_files)}
    assert named == set((ROOT / "configs").glob("*.yaml"))

from importlib import resources
from pathlib import Path

import pytest

from psys.config import Config, parse, read_yaml, validate, write_yaml
from psys.errors import PsysError
from psys.training import TrainingConfig
from tests.support.processes import ROOT


def parsed(*argv: str, default: Path | None = None) -> TrainingConfig:
    return parse(TrainingConfig, argv, "test", default)


def test_flags_overlay_the_file_which_overlays_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 7\naugment: {views: 3, shift: 2}\nschedule: {kind: constant}\n")
    config = parsed("--config", str(file), "--augment.views", "5", "--batch-size=9", "--no-augment.flip")
    assert (config.epochs, config.batch_size, config.mode) == (7, 9, "async")
    assert (config.augment.views, config.augment.shift, config.augment.flip) == (5, 2, False)
    assert config.schedule.kind == "constant"


def test_the_environment_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPOCHS", "3")
    monkeypatch.setenv("MODE", "nonsense")
    assert parsed().epochs == TrainingConfig().epochs


def test_written_settings_read_back_as_they_were(tmp_path: Path) -> None:
    config = parsed("--schedule.kind", "table", "--schedule.table", "[[0, 0.1], [5, 0.01]]", "--workers", "3")
    write_yaml(config, tmp_path / "c.yaml")
    assert validate(TrainingConfig, read_yaml(tmp_path / "c.yaml"), "there") == config


@pytest.mark.parametrize("file", TrainingConfig.named_files, ids=lambda file: file.stem)
def test_every_config_in_the_repository_is_valid(file: Path) -> None:
    parsed("--config", str(file))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--mode", "fast"], "'mode'.*'sync', 'async' or 'ssp', got 'fast'"),
        (["--workers", "0"], "'workers'.*greater than or equal to 1, got '0'"),
        (["--workers", "two"], "'workers'.*integer"),
        (["--optimizer.momentum", "1.5"], "'optimizer.momentum'.*less than 1"),
        (["--augment.veiws", "2"], "--augment.veiws"),
        (["--optimizer.momentum", "0"], "'optimizer'.*'nesterov' needs 'momentum'"),
        (["--backup-workers", "1"], "'backup_workers' needs 'mode' sync: in async no update waits"),
        (["--backup-workers", "2", "--mode", "sync", "--workers", "2"], "of 2 'workers' at most 1 can be 'backup_w"),
        (["--max-staleness", "1", "--mode", "sync"], "'max_staleness' needs 'mode' async: sync has no staleness"),
        (["--max-staleness", "1", "--mode", "ssp"], "'max_staleness' needs 'mode' async: the bound of ssp is 'stal"),
        (["--max-staleness", "-1"], "'max_staleness'.*greater than or equal to 0"),
        (["--sync-epochs", "1", "--mode", "sync"], "'sync_epochs' needs 'mode' async or ssp"),
        (["--remote-workers", "1"], "'remote_workers' needs 'workers': how many there are in all"),
        (["--remote-workers", "3", "--workers", "2"], "of 2 'workers' at most 2 can be 'remote_workers'"),
        (["--name", "../elsewhere"], "'name'"),
        (["--name", ".."], "'name'"),
        (["--workers"], "--workers"),
        (["stray"], "unexpected argument 'stray'"),
        (["--config", "sampel"], "unknown config 'sampel': did you mean 'sample'"),
        (["--config", "other"], "unknown config 'other': the names are cifar10, paper, sample;"),
        (["--config", "./sample"], "cannot read config sample"),
        (["--lr", "1", "--bs=2"], "unknown flag --lr: did you mean --schedule.learning-rate.*--bs.*--batch-size"),
        (["--quux"], r"unknown flag --quux \(see --help\)"),
    ],
)
def test_a_wrong_flag_is_named(argv: list[str], message: str) -> None:
    with pytest.raises(PsysError, match=message):
        parsed(*argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochz: 3", "unknown setting 'epochz', did you mean 'epochs'"),
        ("augment: {veiws: 3}", "unknown setting 'augment.veiws', did you mean 'augment.views'"),
        ("augment: 3", "setting 'augment': expected a mapping of settings, such as 'augment.views', got 3"),
        ("lr: 0.1", "unknown setting 'lr', did you mean 'schedule.learning_rate'"),
        ("optimizer: {lr: 0.1}", "unknown setting 'optimizer.lr', did you mean 'schedule.learning_rate'"),
        ("batch-size: 3", "unknown setting 'batch-size', did you mean 'batch_size'"),
        ("augmnet: {views: 3}", "unknown setting 'augmnet', did you mean 'augment.views'"),
        ("quux: 3", r"unknown setting 'quux' \(see --help\)"),
        ("mode: fast", "'mode'.*got 'fast'.*c.yaml"),
        ("- a\n- b", "expected a mapping of settings, found list"),
        ("a: [", "c.yaml is not YAML"),
        ("mode: !!python/object/apply:os.system [true]", "c.yaml is not YAML"),
    ],
)
def test_a_wrong_file_is_named_with_the_path_of_the_setting(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(PsysError, match=message):
        parsed("--config", str(file))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"cannot read config .*none.yaml: No such file"):
        parsed("--config", str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--learning-rate", "--schedule.learning-rate"),
        ("-lr", "--schedule.learning-rate"),
        ("--batchsize", "--batch-size"),
        ("--num-workers", "--workers"),
        ("--gpus", "--workers"),
        ("--epoch", "--epochs"),
        ("--num_epochs", "--epochs"),
        ("--momentum", "--optimizer.momentum"),
        ("--wd", "--optimizer.weight-decay"),
        ("--optimizer", "--optimizer.kind or --optimizer.momentum"),
        ("--kind", "--optimizer.kind or --schedule.kind"),
        ("--dataset", "--source"),
        ("--output", "--runs"),
        ("--arch", "--model"),
        ("--no-flip", "--no-augment.flip"),
    ],
)
def test_suggestion_for_an_unknown_flag(flag: str, meant: str) -> None:
    with pytest.raises(PsysError, match=f"did you mean {meant}"):
        parsed(flag, "1")


def test_every_synonym_names_a_setting() -> None:
    dotted = {*TrainingConfig.model_fields}
    for name, field in TrainingConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            dotted |= {f"{name}.{below}" for below in field.annotation.model_fields}
    assert set(TrainingConfig.synonyms.values()) <= dotted
    assert not {name.replace("_", "-") for name in dotted} & set(TrainingConfig.synonyms)


def test_snake_case_flags_are_accepted() -> None:
    config = parsed("--batch_size", "9", "--schedule.learning_rate=0.5", "--no-augment.foreground.swap_same_class")
    assert (config.batch_size, config.schedule.learning_rate) == (9, 0.5)


def test_config_is_selected_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parsed("--config", "paper").model == "resnet44"
    (tmp_path / "paper.yaml").write_text("model: resnet8\n")
    assert parsed("--config", "paper").model == "resnet44"
    assert parsed("--config", "paper.yaml").model == "resnet8"


def test_configs_are_package_data() -> None:
    packaged = {file.name: file.read_text() for file in (resources.files("psys") / "configs").iterdir()}
    assert packaged == {file.name: file.read_text() for file in (ROOT / "configs").iterdir()}


def test_every_setting_of_a_training_has_a_topic() -> None:
    fields = TrainingConfig.model_fields.items()
    groups = {
        name for name, field in fields if isinstance(field.annotation, type) and issubclass(field.annotation, Config)
    }
    topics = [name for names in TrainingConfig.topics.values() for name in names]
    assert sorted(topics) == sorted({name for name, _ in fields} - groups)


def shown_help(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parsed(*argv, "--help")
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_shows_the_defaults_that_apply(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("epochs: 7\nschedule: {learning_rate: 5.0e-4}\naugment: {flip: false}\n")
    shown = shown_help(capsys, "--config", str(tmp_path / "c.yaml"))
    assert "passes over the training images (default: 7)" in shown
    assert "first row (default: 0.0005)" in shown
    assert "left-right. (default: no)" in shown
    assert "None" not in shown
    assert "(default: 100)" in shown_help(capsys, "--config", "paper")
    assert f"(default: {TrainingConfig().epochs})" in shown_help(capsys)


def test_help_names_what_is_wrong_with_the_config(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("epochs: 0\n")
    with pytest.raises(PsysError, match="'epochs'"):
        parsed("--config", str(tmp_path / "c.yaml"), "--help")

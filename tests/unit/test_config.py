from pathlib import Path

import pytest

from psys.config import parse, read_yaml, validate, write_yaml
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


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
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
        (["--name", "../elsewhere"], "'name'"),
        (["--name", ".."], "'name'"),
        (["--workers"], "--workers"),
        (["stray"], "stray"),
    ],
)
def test_a_wrong_flag_is_named(argv: list[str], message: str) -> None:
    with pytest.raises(PsysError, match=message):
        parsed(*argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochz: 3", "unknown setting 'epochz', did you mean 'epochs'"),
        ("augment: {veiws: 3}", "unknown setting 'augment.veiws', did you mean 'views'"),
        ("augment: 3", "setting 'augment'"),
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

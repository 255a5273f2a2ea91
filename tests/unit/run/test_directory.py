"""A run's directory and its files of tensors."""

import os
import stat
from pathlib import Path

import pytest
import torch

from psys.config import read_yaml
from psys.errors import PsysError
from psys.run.assembly import initial_model
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory
from psys.run.snapshots import load_snapshot, save_module, save_snapshot


def create(runs: Path, **settings: object) -> RunDirectory:
    return RunDirectory.create(RunConfig.model_validate({"name": "r", "runs": runs, "model": "resnet8", **settings}))


def test_new_directory_holds_settings_and_environment(tmp_path: Path) -> None:
    run = create(tmp_path, epochs=3)
    assert run.config().epochs == 3
    environment = read_yaml(run.path / "environment.json")
    assert environment["packages"]["torch"] == torch.__version__
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "environment.json", "logs", "snapshots"}


def test_fault_plan_is_copied_into_the_directory(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("faults: [{worker: 1, step: 5, kind: kill}]", encoding="utf-8")
    run = create(tmp_path, faults=tmp_path / "plan.yaml")
    assert run.config().faults == run.path / "faults.yaml"
    assert read_yaml(run.path / "faults.yaml")["faults"][0]["worker"] == 1


def test_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    create(tmp_path)
    with pytest.raises(PsysError, match="holds a run already"):
        create(tmp_path)


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file", encoding="utf-8")
    with pytest.raises(PsysError, match=r"cannot make the run directory .*runs"):
        create(tmp_path / "runs")


def test_settings_of_a_folder_that_is_not_a_run_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"cannot read config .*config\.yaml"):
        RunDirectory(tmp_path).config()


def test_result_exists_once_the_run_is_evaluated(tmp_path: Path) -> None:
    run = create(tmp_path)
    assert not run.complete
    with pytest.raises(PsysError, match=r"was not evaluated yet: run `psys evaluate"):
        run.result()
    run.write_result({"mode": "async"})
    assert run.complete
    assert run.result() == {"mode": "async"}


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_result_that_is_not_a_json_object_is_named(tmp_path: Path, content: str) -> None:
    run = create(tmp_path)
    run.result_file.write_text(content, encoding="utf-8")
    with pytest.raises(PsysError, match=r"result\.json is not a JSON object"):
        run.result()


def test_only_the_user_can_read_the_token(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.write_token("secret")
    assert stat.S_IMODE(run.token.stat().st_mode) == 0o600
    assert run.token.read_text(encoding="utf-8") == "secret\n"


def test_roll_back_removes_snapshots_of_later_versions(tmp_path: Path) -> None:
    run = create(tmp_path)
    assert run.newest_snapshot() == 0
    for version in (5, 100, 20):
        save_snapshot(torch.zeros(3), torch.zeros(2), run.snapshot_path(version))
    assert run.newest_snapshot() == 100
    run.roll_back(20)
    assert run.newest_snapshot() == 20
    run.roll_back(4)
    assert run.newest_snapshot() == 0


def test_snapshot_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    model, other = (initial_model(RunConfig(model="resnet8", seed=seed), classes=10) for seed in (0, 1))
    model.statistics.uniform_()
    save_snapshot(model.parameters, model.statistics, tmp_path / "snapshot.safetensors")
    load_snapshot(other, tmp_path / "snapshot.safetensors")
    assert torch.equal(other.parameters, model.parameters)
    assert torch.equal(other.statistics, model.statistics)


def test_damaged_snapshot_and_snapshot_of_another_model_are_named(tmp_path: Path) -> None:
    model, other = (initial_model(RunConfig(model=name), classes=10) for name in ("resnet8", "mlp2"))
    path = tmp_path / "snapshot.safetensors"
    with pytest.raises(PsysError, match=r"cannot load .*snapshot\.safetensors"):
        load_snapshot(model, path)
    save_snapshot(other.parameters, other.statistics, path)
    with pytest.raises(PsysError, match=r"cannot load .*snapshot\.safetensors"):
        load_snapshot(model, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PsysError, match=r"cannot load .*snapshot\.safetensors"):
        load_snapshot(other, path)


def test_tensor_files_get_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    model = initial_model(RunConfig(model="mlp2"), classes=10)
    before = os.umask(0o022)
    try:
        (tmp_path / "best.tmp").touch(0o600)  # as a killed process may leave it
        save_module(model.module, tmp_path / "best.safetensors", {"model": "mlp2"})
        save_snapshot(model.parameters, model.statistics, tmp_path / "snapshot.safetensors")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"best.safetensors": 0o644, "snapshot.safetensors": 0o644}

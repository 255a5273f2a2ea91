"""A run's directory and its files of tensors."""

import contextlib
import os
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from psys.config import read_yaml
from psys.errors import PsysError
from psys.run.assembly import initial_model
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory
from psys.run.snapshots import load_snapshot, save_module, save_snapshot
from tests.support.runs import start, write_events


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


def test_name_of_a_run_that_has_begun_is_refused(tmp_path: Path) -> None:
    write_events(create(tmp_path, epochs=3), [start("")])
    with pytest.raises(PsysError, match=r"holds a run already: continue it with --resume .*r, or choose another"):
        create(tmp_path)
    assert RunDirectory(tmp_path / "r").config().epochs == 3


def test_name_of_a_run_that_never_began_is_free(tmp_path: Path) -> None:
    run = create(tmp_path, epochs=3)
    run.events.write_text('{"event": "st')
    (run.path / "lock").touch()
    assert create(tmp_path, epochs=4).config().epochs == 4


def test_folder_with_files_of_something_else_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "holiday.jpg").touch()
    with pytest.raises(PsysError, match="r holds other files than those of a run: choose another --name"):
        create(tmp_path)


@pytest.mark.parametrize("lock", [True, False])
def test_files_that_psys_did_not_write_stay(tmp_path: Path, lock: bool) -> None:
    """Not even names of files of a run make a folder psys' own: its lock does."""
    run = create(tmp_path)
    (run.path / "logs" / "precious.txt").touch()
    if lock:
        with run.locked():
            run.remove()
        assert not run.path.exists()
    else:
        with pytest.raises(PsysError, match="holds other files"):
            create(tmp_path)


def test_lock_of_another_start_stays(tmp_path: Path) -> None:
    """A start that failed removes its directory while another one begins there."""
    run = create(tmp_path)
    with run.locked():
        run.remove()
        (run.path / "lock").unlink(missing_ok=True)
        other = contextlib.ExitStack()
        other.enter_context(run.locked())  # makes the directory again
    with other, pytest.raises(PsysError, match="still going on"), run.locked():
        pass


def test_settings_of_before_each_change_are_kept(tmp_path: Path) -> None:
    run = create(tmp_path)

    def change(version: int, epochs: int) -> None:
        run.archive_settings(version)
        run.update(run.config().model_copy(update={"epochs": epochs}))

    def kept() -> dict[str, int]:
        return {
            path.name: read_yaml(path / "config.yaml")["epochs"] for path in sorted((run.path / "segments").iterdir())
        }

    change(10, 21)
    change(10, 22)  # nothing was trained meanwhile
    assert kept() == {"00000010": 20}
    change(30, 23)
    assert kept() == {"00000010": 20, "00000030": 22}
    change(20, 24)  # the run goes back
    assert kept() == {"00000010": 20, "00000020": 22}
    change(5, 25)
    assert kept() == {"00000005": 20}


def test_result_is_kept_under_its_last_version(tmp_path: Path) -> None:
    run = create(tmp_path)
    for text in ("first", "second"):
        run.write_result({"last": {"version": 7}, "text": text})
        run.write_right({"best": np.array([True]), "last": np.array([text == "first"])})
        run.archive_result()
        assert not run.complete
    assert read_yaml(run.path / "result-00000007.json")["text"] == "second"
    assert not np.load(run.path / "right-00000007.npz")["last"].any()


def test_runs_without_a_name_never_share_one(tmp_path: Path) -> None:
    assert len({create(tmp_path, name=None).path for _ in range(5)}) == 5


def test_paths_of_a_run_are_those_of_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    (before / "stores" / "tiny").mkdir(parents=True)
    (before / "plan.yaml").write_text("faults: []", encoding="utf-8")
    monkeypatch.chdir(before)
    create(Path("runs"), store="stores/tiny", faults="plan.yaml")
    monkeypatch.chdir(tmp_path)
    config = RunDirectory(before / "runs" / "r").config()
    assert (config.runs, config.store) == (before / "runs", before / "stores" / "tiny")

    (before / "runs").rename(tmp_path / "elsewhere")  # without the store
    moved = RunDirectory(Path("elsewhere/r")).config()
    assert (moved.runs, moved.name, moved.store) == (tmp_path / "elsewhere", "r", before / "stores" / "tiny")
    assert moved.faults == tmp_path / "elsewhere" / "r" / "faults.yaml"
    (tmp_path / "elsewhere").rename(before / "runs")

    before.rename(after)  # together with the store
    (after / "runs" / "r").rename(after / "runs" / "s")
    config = RunDirectory(after / "runs" / "s").config()
    assert (config.name, config.store) == ("s", after / "stores" / "tiny")
    assert RunDirectory(after / "runs" / "s", store=Path("other")).config().store == Path("other")


def test_run_in_a_folder_of_any_name_has_settings(tmp_path: Path) -> None:
    create(tmp_path).path.rename(tmp_path / "r (copy)")
    run = RunDirectory(tmp_path / "r (copy)")
    run.update(run.config())
    assert run.config().name is None


def test_run_is_locked_by_one_process_at_a_time(tmp_path: Path) -> None:
    run = create(tmp_path)
    with run.locked(), pytest.raises(PsysError, match=f"still going on, in process {os.getpid()} on"), run.locked():
        pass
    with run.locked():
        pass
    assert not (run.path / "lock").exists()


def test_lock_is_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = create(tmp_path)
    entered = threading.Event()

    def hold() -> None:
        with run.locked():
            entered.set()
            while "waiting up to" not in capfd.readouterr().err:
                time.sleep(0.01)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(60)
    with run.locked(wait=60):
        pass
    holder.join()


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

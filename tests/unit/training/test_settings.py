"""Settings of a training: role, token, and the file that a resumed run has them from."""

from pathlib import Path
from typing import Any

import pytest

from psys.errors import PsysError
from psys.ps.compensation import CompensationConfig
from psys.ps.schedule import ScheduleConfig
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory
from psys.training import TrainingConfig, read_settings, train
from psys.training.launch import launch
from psys.training.settings import is_loopback, over_run
from psys.training.start import started_run


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PSYS_TOKEN", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("arguments", [["--role", "worker"], ["--role", "server"], ["--join", "localhost:1"]])
def test_role_and_join_go_together(arguments: list[str]) -> None:
    with pytest.raises(PsysError, match="--join HOST:PORT, go together"):
        launch(read_settings(arguments))


@pytest.mark.parametrize("role", ["worker", "server"])
def test_port_to_join_is_checked(role: str) -> None:
    with pytest.raises(PsysError, match="localhost:99999: a port is a number from 1 to 65535"):
        launch(read_settings(["--role", role, "--join", "localhost:99999"]))


def test_unknown_role_is_refused() -> None:
    with pytest.raises(PsysError, match="'role'"):
        read_settings(["--role", "master"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"role": "worker", "join": "a:1"}, "leave out 'role' and 'join'"),
        ({"servers": 2, "remote_servers": 1}, "'remote_servers' must be 0"),
        ({"workers": 2, "remote_workers": 1}, "'remote_workers' must be 0"),
        ({"ray_address": None, "gpus_per_worker": 1}, "'gpus_per_worker' needs 'ray_address'"),
    ],
)
def test_settings_that_do_not_go_with_a_ray_cluster(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig.model_validate({"ray_address": "a:1", "workers": 2, **settings})


def test_ray_cluster_is_refused_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(PsysError, match="leave out torchrun"):
        launch(TrainingConfig(ray_address="a:1", workers=2))


def test_train_refuses_the_role_of_one_process() -> None:
    with pytest.raises(PsysError, match="role 'worker'"):
        train(TrainingConfig(role="worker", join="localhost:1"))


def test_several_processes_without_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(PsysError, match="without torchrun"):
        launch(TrainingConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"servers": 3}, "of torchrun's 3 processes 3 are servers"),
        ({"servers": 3, "remote_servers": 1, "workers": 2}, "of torchrun's 3 processes 1 are workers"),
        ({"workers": 2, "remote_workers": 1}, "of torchrun's 3 processes 2 are workers, and 1 are remote"),
        ({"listen": "0.0.0.0"}, "needs a token"),
    ],
)
def test_ranks_that_do_not_fit_the_settings(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    environment = {"WORLD_SIZE": "3", "RANK": "0", "MASTER_ADDR": "localhost", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PsysError, match=message):
        launch(TrainingConfig.model_validate(settings))


def test_backup_workers_that_are_all_workers_are_refused() -> None:
    config = TrainingConfig(mode="sync", backup_workers=2)
    assert config.run_config(workers=3).backup_workers == 2
    with pytest.raises(PsysError, match=r"of 2 'workers' at most 1 can be 'backup_workers' \(in a run of 2 workers\)"):
        config.run_config(workers=2)


def test_train_accepts_the_settings_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match="no prepared store at"):
        train(RunConfig(store=tmp_path / "none", source=None))


def test_train_refuses_an_unknown_model_before_it_prepares(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match="resnet9"):
        train(RunConfig(store=tmp_path / "none", model="resnet9", runs=tmp_path / "runs"))
    assert list(tmp_path.iterdir()) == []


def test_token_of_the_file_goes_before_that_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("of the file\n")
    assert TrainingConfig().token() == ""
    monkeypatch.setenv("PSYS_TOKEN", "of the environment")
    assert TrainingConfig().token() == "of the environment"
    assert TrainingConfig(token_file=file).token() == "of the file"


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), (b" \n", "is empty"), (b"\xff", "cannot read the token")]
)
def test_unusable_token_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PsysError, match=message) as error:
        TrainingConfig(token_file=file).token()
    assert str(file) in str(error.value)


def test_settings_of_the_run_to_resume_are_the_defaults(tmp_path: Path) -> None:
    run = RunDirectory.create(RunConfig(runs=tmp_path, name="r", mode="ssp", workers=3))
    settings = read_settings(["--resume", str(run.path), "--workers", "2"])
    assert (settings.mode, settings.workers, settings.resume) == ("ssp", 2, run.path)
    from_python = over_run(TrainingConfig(resume=run.path, workers=2, schedule=ScheduleConfig(learning_rate=0.5)))
    assert (from_python.mode, from_python.workers, from_python.runs) == ("ssp", 2, tmp_path)
    assert (from_python.schedule.kind, from_python.schedule.learning_rate) == ("cosine", 0.5)


def test_settings_that_nobody_set_follow_a_resumed_run(tmp_path: Path) -> None:
    chosen = TrainingConfig(runs=tmp_path, name="r", mode="async", compensation=CompensationConfig(staleness_power=0.5))
    run = RunDirectory.create(chosen.run_config(workers=16))
    assert (run.config().compensation.gap_aware, run.config().schedule.scaling) == (True, "capped")
    for resumed in (
        read_settings(["--resume", str(run.path), "--mode", "sync"]),
        over_run(TrainingConfig(resume=run.path, mode="sync")),
    ):
        config = resumed.run_config(workers=2)
        assert (config.compensation.gap_aware, config.schedule.scaling) == (False, "capped")
        assert config.compensation.staleness_power == 0.5
    kept = read_settings(["--resume", str(run.path), "--compensation.gap-aware", "--workers", "2"]).run_config(2)
    assert kept.compensation.gap_aware
    assert kept.followed == ("schedule.scaling", "optimizer.momentum_per_worker")


def test_resume_auto_needs_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_store_path: Path) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    settings = read_settings(["--resume", "auto", "--runs", str(tmp_path), "--store", str(small_store_path)])
    with pytest.raises(PsysError, match="--resume auto needs --name"):
        train(settings)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with started_run(settings, workers=1) as (run, trains):
        assert (run.path, trains) == (tmp_path / "slurm-7", True)
    assert not run.path.exists()  # it had no event


def test_start_that_fails_leaves_no_directory(tmp_path: Path) -> None:
    settings = TrainingConfig(runs=tmp_path, name="r", store=tmp_path / "none", source=None)
    with pytest.raises(PsysError, match="no prepared store"):
        train(settings)
    assert not (tmp_path / "r").exists()


def test_addresses_of_loopback() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    with pytest.raises(PsysError, match=r"no\.such\.host\.invalid"):
        is_loopback("no.such.host.invalid")

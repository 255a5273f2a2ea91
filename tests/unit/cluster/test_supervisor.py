"""The supervisor restarts, stops and reports; its processes are real, what they compute is not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from psys.cluster import supervisor
from psys.cluster.child import STOP, STOP_WITHOUT_WORKERS
from psys.cluster.supervisor import Supervisor
from psys.errors import TOO_MANY_OPEN_FILES, PsysError
from psys.run.config import RestartConfig, RunConfig
from psys.run.directory import RunDirectory
from psys.transport.address import listen
from tests.support import supervised

Supervise = Callable[..., bool]


@pytest.fixture
def supervise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervise:
    """Runs the supervisor with these functions as server 0 and workers; no process is left afterwards."""

    def supervise(
        server: Callable[..., None] | None,
        worker: Callable[..., None],
        stopped: Callable[[], bool] = lambda: False,
        **settings: Any,
    ) -> bool:
        if server:
            monkeypatch.setattr(supervisor, "run_server_0", server)
        monkeypatch.setattr(supervisor, "run_worker", worker)
        restarts = RestartConfig(failures=1, first_pause=0.0)
        run = RunDirectory.create(RunConfig(runs=tmp_path, name="r", workers=2, restarts=restarts, **settings))
        before = {process.pid for process in psutil.Process().children(recursive=True)}
        try:
            return Supervisor(run, listen("127.0.0.1", 0), threads=1, token=str(tmp_path)).supervise(stopped)
        finally:
            assert {process.pid for process in psutil.Process().children(recursive=True)} <= before

    return supervise


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", ""),
        ("Traceback\npsys: error: no such store\n\n", "psys: error: no such store"),
        ("terminate called\n  what():  In open at uv.h:297 rv < 0: too many open files", TOO_MANY_OPEN_FILES),
        ("terminate called\n  what():  In open at uv.h:297 rv < 0", ""),
        (None, "worker0.log: No such file or directory"),
    ],
)
def test_reason_in_the_log_of_a_worker(tmp_path: Path, content: str | None, reason: str) -> None:
    log = tmp_path / "worker0.log"
    if content is not None:
        log.write_text(content)
    assert supervisor._reason_in(log).removeprefix(f"{tmp_path}/") == reason


def test_run_that_applied_every_batch(supervise: Supervise) -> None:
    assert supervise(supervised.server_that_ends, supervised.worker_that_ends) is True


def test_stopped_run_is_saved_by_server_0(supervise: Supervise, tmp_path: Path) -> None:
    waits = tmp_path / "server waits"
    assert supervise(supervised.server_that_waits, supervised.worker_that_waits, stopped=waits.exists) is False
    assert (tmp_path / f"server got {STOP.value}").exists()


def test_servers_that_fail_in_a_row_are_not_restarted_for_ever(
    supervise: Supervise, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PsysError, match=r"a server ended with code 1 and is not restarted; .*--resume"):
        supervise(supervised.server_that_fails, supervised.worker_that_waits)
    assert (tmp_path / "servers").read_text() == "started\n" * 2
    assert capsys.readouterr().err.count("all servers are restarted from the last checkpoint") == 1


def test_run_without_workers_ends_early(
    supervise: Supervise, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PsysError, match="no worker is left"):
        supervise(supervised.server_that_waits, supervised.worker_that_fails)
    assert (tmp_path / f"server got {STOP_WITHOUT_WORKERS.value}").exists()
    shown = capsys.readouterr().err
    assert shown.count("ended with code 1: the last line of its log") == 4
    assert shown.count("it died too often in a row and is not restarted") == 2


def test_error_of_a_server_is_raised(supervise: Supervise, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PsysError, match=f"{tmp_path}/none"):
        supervise(None, supervised.worker_that_waits, store=tmp_path / "none")
    assert "error" not in capfd.readouterr().err

"""A run whose workers and other servers are all started elsewhere, as a cluster's scheduler does."""

from pathlib import Path

from psys.ps.events import CheckpointSaved
from tests.support.processes import (
    PS,
    audited,
    events,
    family,
    finished,
    reserved_port,
    resumes,
    small_run,
    started,
    wait_until,
    workers_of,
)


def test_run_that_is_lost_and_comes_back_with_other_settings_is_joined_anew(
    small_store_path: Path, tmp_path: Path
) -> None:
    """Every process that joined ends with code 0: a scheduler that starts what fails again knows that it is over."""
    path = tmp_path / "runs" / "r"
    with reserved_port() as port:
        elsewhere = ("--remote-workers", "2", "--servers", "2", "--remote-servers", "1", "--port", str(port))
        more = (*elsewhere, "--resume", "auto", "--epochs", "12", "--checkpoint-every", "1")
        serving = (PS, *small_run(small_store_path, "r", *more))
        joining = (PS, "--join", f"localhost:{port}", "--threads", "1", "--role")
        with (
            started(*joining, "worker", "--store", str(small_store_path), cwd=tmp_path) as first,
            started(*joining, "worker", "--store", str(small_store_path), cwd=tmp_path) as second,
            started(*joining, "server", cwd=tmp_path) as server,
        ):
            with started(*serving, cwd=tmp_path) as lost:
                wait_until(lambda: bool(events(path, CheckpointSaved)), "a checkpoint", lost, first, second, server)
                assert workers_of(lost) == []
                for member in family(lost):
                    member.kill()
            with started(*serving, "--mode", "sync", cwd=tmp_path) as again:
                done = [finished(process) for process in (again, first, second, server)]
    assert [each.code for each in done] == [0, 0, 0, 0], done
    assert all("the run came back with other settings" in worker.err for worker in done[1:3])
    assert len(resumes(path)) == 1
    assert audited(path).unfinished == 0

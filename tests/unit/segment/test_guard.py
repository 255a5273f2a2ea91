"""The guard's cleanup after a process that ended or was killed, without Ray."""

import os
import subprocess
from pathlib import Path

import psutil
import pytest

from psys.segment.guard import MARK
from tests.support.processes import ROOT, started, wait_until

PROGRAM = ROOT / "tests" / "support" / "programs" / "guarded_commands.py"
BACKGROUND = "sleep 61 & echo $! >> ../pids"
# Like Ray's agents, this process has a title instead of its environment and arguments; its log file is in the folder.
TITLED = """env -i bash -c 'exec -a ray::Agent sleep 61 >> log' & echo $! >> ../pids
until tr '\\0' ' ' < /proc/$!/cmdline | grep -q ^ray::; do :; done"""


@pytest.mark.parametrize("end", ["killed", "finished"])
def test_guard_removes_processes_and_folder(tmp_path: Path, end: str) -> None:
    folder = tmp_path / "guarded"
    folder.mkdir()
    other = subprocess.Popen(["sleep", "61"], env={**os.environ, MARK: f"{folder}2"})
    try:
        with started(str(PROGRAM), str(folder), end, BACKGROUND, TITLED, cwd=tmp_path) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            if end == "killed":
                process.kill()
            process.wait()
            wait_until(lambda: not folder.exists(), "the deletion of the folder")
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert len(pids) == 2
        assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()

"""What a killed process leaves behind, without Ray: processes that nobody's list has, and a folder."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from psys.segment.guard import MARK
from tests.support.processes import wait_until

# A process that goes away at once, and one that stays: in a session of its own, as a stranger's child.
_WITHIN = """
import subprocess, sys, time
from pathlib import Path
from psys.segment.guard import guarded
with guarded(Path(sys.argv[1])):
    for command in sys.argv[3:]:
        subprocess.run(["sh", "-c", command], cwd=sys.argv[1], start_new_session=True, check=True)
    print("ready", flush=True)
    if sys.argv[2] == "killed":
        time.sleep(60)
"""
_STAYING = "sleep 61 & echo $! >> ../pids"
# Whose environment and arguments do not tell any more where it belongs, as those of Ray's agents; its log does.
_TITLED = """env -i bash -c 'exec -a ray::Agent sleep 61 >> log' & echo $! >> ../pids
until tr '\\0' ' ' < /proc/$!/cmdline | grep -q ^ray::; do :; done"""


@pytest.mark.parametrize("end", ["killed", "in order"])
def test_guard_removes_processes_and_folder(tmp_path: Path, end: str) -> None:
    folder = tmp_path / "guarded"
    folder.mkdir()
    other = subprocess.Popen(["sleep", "61"], env={**os.environ, MARK: f"{folder}2"})
    process = subprocess.Popen(
        [sys.executable, "-c", _WITHIN, str(folder), end, _STAYING, _TITLED],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if end == "killed":
            process.kill()
        process.wait()
        wait_until(lambda: not folder.exists(), "the end of the folder")
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert len(pids) == 2
        assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)
        assert other.poll() is None
    finally:
        process.kill()
        process.communicate()
        other.kill()
        other.wait()

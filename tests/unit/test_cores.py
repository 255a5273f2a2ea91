"""The CPU quota of cgroups, read from trees of files as the kernel shows them."""

import os
from pathlib import Path

import pytest

from psys.cores import available_cores, cpu_quota


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


V1 = "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        pytest.param("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5, id="v2, container"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, None, id="v2, no quota"),
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 200000\n"}, 2.0, id="v2, above"),
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n", "a/cpu.max": "400000 100000\n"}, 0.5, id="v2, min"),
        pytest.param("0::/../other\n", {"cpu.max": "300000 100000\n"}, 3.0, id="v2, path outside of the container"),
        pytest.param("0::/\n", {}, None, id="no files"),
        pytest.param("", {"cpu.max": "150000 100000\n"}, None, id="no cgroup"),
        pytest.param("0::/\n", {"cpu.max": "lots\n"}, None, id="not a quota"),
        pytest.param("0::/\n", {"cpu.max": "1 0\n"}, None, id="period 0"),
        pytest.param(
            "5:memory:/x\n4:cpu,cpuacct:/docker/1f\n0::/\n",
            {f"cpu,cpuacct/docker/1f/{V1[0]}": "250000\n", f"cpu,cpuacct/docker/1f/{V1[1]}": "100000\n"},
            2.5,
            id="v1",
        ),
        pytest.param(
            "4:cpu:/docker/1f\n", {f"cpu/{V1[0]}": "250000\n", f"cpu/{V1[1]}": "50000\n"}, 5.0, id="v1, container"
        ),
        pytest.param("4:cpu:/\n", {f"cpu/{V1[0]}": "-1\n", f"cpu/{V1[1]}": "100000\n"}, None, id="v1, no quota"),
        pytest.param(
            "4:cpuset:/\n", {f"cpuset/{V1[0]}": "100000\n", f"cpuset/{V1[1]}": "100000\n"}, None, id="v1, only cpuset"
        ),
    ],
)
def test_quota_of_cgroups(tmp_path: Path, membership: str, files: dict[str, str], cores: float | None) -> None:
    write(tmp_path, files)
    assert cpu_quota(membership, tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (0.2, 1), (1.5, 2), (3.0, 3), (64.0, 8)])
def test_cores_are_those_of_the_affinity_within_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("psys.cores.cpu_quota", lambda membership, root: quota)
    assert available_cores() == cores

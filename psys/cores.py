"""How many cores this process may use: those of its affinity, within the CPU quota of its cgroups."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def available_cores() -> int:
    """Cores that this process may use, at least 1. A quota of 1.5 cores counts as 2."""
    affinity = len(os.sched_getaffinity(0))
    try:
        quota = cpu_quota(Path("/proc/self/cgroup").read_text(encoding="utf-8"), Path("/sys/fs/cgroup"))
    except OSError:
        return affinity
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def cpu_quota(membership: str, root: Path) -> float | None:
    """The smallest CPU quota of a process's cgroups and of the cgroups above them, in cores; None: there is no quota.

    membership: content of /proc/PID/cgroup; root: where cgroups are mounted. Reads cgroup v2's `cpu.max` and v1's
    `cpu.cfs_quota_us` and `cpu.cfs_period_us`. A container may see its own cgroup at `root` and not at the path that
    `membership` names: cgroups that are not there are passed over, and so are files that are no quota.
    """
    quotas = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        for group in _groups(root, controllers, path):
            try:
                quotas.append(_quota_v1(group) if controllers else _quota_v2(group))
            except (OSError, ValueError, ZeroDivisionError):
                continue
    smallest = min(quotas, default=math.inf)
    return smallest if smallest < math.inf else None


def _groups(root: Path, controllers: str, path: str) -> Iterator[Path]:
    """Directories of a cgroup and of those above it, in each place where this hierarchy may be mounted."""
    if controllers and "cpu" not in controllers.split(","):
        return
    mounts = {root / controllers, root / "cpu"} if controllers else {root, root / "unified"}
    below = PurePosixPath(path.lstrip("/"))
    for mount in mounts:
        for part in (below, *below.parents):
            yield mount / part


def _quota_v1(group: Path) -> float:
    quota = int((group / "cpu.cfs_quota_us").read_text())
    return quota / int((group / "cpu.cfs_period_us").read_text()) if quota > 0 else math.inf


def _quota_v2(group: Path) -> float:
    quota, period = (group / "cpu.max").read_text().split()
    return math.inf if quota == "max" else int(quota) / int(period)

"""Containers as a runtime starts them: their own root, read-only, a user without a name and without any capability.

The image of Dockerfile is emulated: this machine's system, the Python environment of the tests, and psys. A container
is a mount and a process namespace on an emulated host, which is the pod's.
"""

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.hosts import Host, entering, holder
from tests.support.processes import ROOT, restore_signals

_SYSTEM = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr")
_SYSTEM_FILES = (
    *("/etc/alternatives", "/etc/group", "/etc/host.conf", "/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf"),
    *("/etc/passwd", "/etc/ssl"),
)
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_SHM = "64m"  # what container runtimes give
_ROOT = "/mnt"  # of the container, while it is built


@dataclass(frozen=True)
class Mount:
    source: Path
    target: str
    read_only: bool


@dataclass(frozen=True)
class User:
    uid: int
    gid: int
    groups: tuple[int, ...]


@contextlib.contextmanager
def started_container(
    host: Host,
    command: Sequence[str],
    environment: Mapping[str, str],
    directory: str,
    mounts: Sequence[Mount],
    user: User,
    log: Path,
) -> Iterator["subprocess.Popen[str]"]:
    """Start a command in a container on `host`. All processes of the container are killed at the end of the block.

    The process is the nsenter that waits for the command (see tests.support.hosts.command). Standard output and
    standard error are appended to `log`.
    """
    with holder(["--mount", "--pid"], "\n".join(_root(mounts)), host=host) as init, log.open("ab") as output:
        rights = ("--no-new-privs", "--inh-caps=-all", "--bounding-set=-all")
        groups = f"--groups={','.join(map(str, user.groups))}" if user.groups else "--clear-groups"
        process = subprocess.Popen(
            [
                *(*entering(init), "chroot", _ROOT),
                *("setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", groups, *rights),
                *("env", "-i", f"--chdir={directory}", *(f"{name}={value}" for name, value in environment.items())),
                *command,
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
            preexec_fn=restore_signals,
        )
        try:
            yield process
        finally:
            process.kill()
    process.wait()


def image_environment() -> dict[str, str]:
    """The variables of the image, and the home directory that a runtime gives to a user without a name."""
    path = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin"
    of_image = {"PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0", "ORT_DISABLE_TELEMETRY": "1"}
    return of_image | {"PATH": path, "PYTHONPATH": str(_PSYS), "HOME": "/"}


IMAGE_DIRECTORY = Path("/data")
"""where the image's commands run"""
_PSYS = Path("/opt/psys")  # where the emulated image has the package


def _root(mounts: Sequence[Mount]) -> Iterator[str]:
    """Lines of a shell script that builds the container's root."""
    yield f"mount -t tmpfs -o mode=755 image {_ROOT}"
    yield f"cd {_ROOT}; mkdir -m 1777 tmp; mkdir -p dev proc sys {_inside(IMAGE_DIRECTORY)} {_inside(_PSYS)}"
    for path in map(Path, _SYSTEM):
        if path.is_symlink():
            yield f"ln -s {shlex.quote(os.readlink(path))} {_inside(path)}"
        elif path.exists():
            yield from _bind(Mount(path, str(path), read_only=True))
    yield f"mkdir etc; cp -a {' '.join(str(path) for path in map(Path, _SYSTEM_FILES) if path.exists())} etc"
    yield "touch etc/hosts etc/resolv.conf"  # without a name server, as on the host
    for name in ("psys", "configs"):
        yield from _bind(Mount(ROOT / name, str(_PSYS / name), read_only=True))
    yield "mount -t proc proc proc; mount --rbind /sys sys; mount -t tmpfs -o mode=755 dev dev"
    for name in _DEVICES:
        yield f"touch dev/{name}; mount --bind /dev/{name} dev/{name}"
    yield f"ln -s /proc/self/fd dev/fd; mkdir dev/shm; mount -t tmpfs -o mode=1777,size={_SHM} shm dev/shm"
    for mount in sorted(mounts, key=lambda mount: mount.target):  # the outer ones first
        yield from _bind(mount)
    # Last, because it may lie below a folder that a volume hides.
    for prefix in sorted({*map(Path, (sys.prefix, sys.base_prefix)), Path(sys.base_prefix).resolve()}):
        if not any(prefix.is_relative_to(system) for system in _SYSTEM):
            yield from _bind(Mount(prefix, str(prefix), read_only=True))
    yield f"cd /; mount -o remount,ro {_ROOT}"


def _bind(mount: Mount) -> Iterator[str]:
    source, target = shlex.quote(str(mount.source)), _inside(Path(mount.target))
    if mount.source.is_dir():
        yield f"mkdir -p {target}"
    else:
        yield f"test -e {target} || touch {target}"
    yield f"mount --bind {source} {target}"
    if mount.read_only:
        yield f"mount -o remount,bind,ro {target}"


def _inside(path: Path) -> str:
    return shlex.quote(str(path.relative_to("/")))

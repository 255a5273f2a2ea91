"""Nodes of a Ray cluster on this machine, started as a user does; they are gone after the block."""

import contextlib
import re
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from psys.temporary import folder_for_sockets
from tests.support.processes import family, finished, started

_SOCKET_BYTES = 90  # of a Ray node's sockets below its folder
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_health_check_period_ms": "1000"}


@dataclass
class Node:
    """A node; `address` is that of its cluster."""

    address: str
    token: str
    process: "subprocess.Popen[str]"

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to join the cluster."""
        return {"RAY_AUTH_TOKEN": self.token}

    def processes(self) -> list[psutil.Process]:
        """All processes of the node, those of actors included."""
        return family(self.process)

    def kill(self) -> None:
        """Lose the node, as if its machine had failed."""
        for each in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


@contextlib.contextmanager
def ray_node(cpus: int, head: Node | None = None) -> Iterator[Node]:
    """A node with that many cores, of the cluster of `head`, or the head of a cluster of its own."""
    token = head.token if head else secrets.token_hex(32)
    with tempfile.TemporaryDirectory(
        prefix="psys-ray-", dir=folder_for_sockets(_SOCKET_BYTES), ignore_cleanup_errors=True
    ) as folder:
        own = ("--head", "--port=0", "--include-dashboard=false", "--temp-dir", folder)
        where = ("--address", head.address) if head else own
        settings = (f"--num-cpus={cpus}", "--num-gpus=0", "--object-store-memory=80000000")
        command = ("-u", "-m", "ray.scripts.scripts", "start", *where, *settings, "--block")
        with started(*command, cwd=Path(folder), env={**_SETTINGS, "RAY_AUTH_TOKEN": token}) as process:
            printed = _printed_until("--block", process)
            address = head.address if head else re.findall(r"--address='(\S+)'", printed)[0]
            yield Node(address, token, process)


def _printed_until(line: str, process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    printed = ""
    while line not in printed:
        read = process.stdout.readline()
        assert read, f"a Ray node did not start: {printed}{finished(process).err}"
        printed += read
    return printed

"""Several hosts emulated on one machine: namespaces of network, processes and host name, connected by a bridge.

A host is its init process, a `cat` that ends when this process ends for any reason. The kernel then kills all processes
of the host and removes its network: no name, file or link is left to be cleaned up.
"""

import contextlib
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psutil

from tests.support.processes import PROGRAMS

_NET = "10.77.0"  # not visible outside: the bridge is in a namespace of its own as well
_NAMESPACES = ("--net", "--uts", "--mount", "--pid")
_HOST = """
printf %s "$1" > /proc/sys/kernel/hostname
# Bound from memory. Without a name server, because each reverse look-up would wait for one that cannot be reached.
mount -t tmpfs none /mnt
printf %s "$2" > /mnt/hosts
mount --bind /mnt/hosts /etc/hosts
umount --lazy /mnt
mount --bind /dev/null /etc/resolv.conf
"""
_PROBE = "ip link add probe type bridge && ip link add one type veth peer name two"


@dataclass(frozen=True)
class Host:
    name: str
    """host name, which the other hosts resolve"""
    address: str
    init: int
    """process id"""

    def python(self, *arguments: str) -> tuple[str, ...]:
        """Arguments of `run` and `started` for `python ARGUMENTS` on this host."""
        return ("-S", str(PROGRAMS / "enter_host.py"), str(self.init), *arguments)


class Lan:
    """Hosts on one bridge; unpacks to them in order."""

    def __init__(self, switch: int, hosts: list[Host]) -> None:
        self._switch, self._hosts = switch, hosts

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts)

    def partition(self, host: Host) -> None:
        """Drop all packets from and to `host` from now on."""
        _ip(self._switch, [f"link set dev {host.name} nomaster"])

    def heal(self, host: Host) -> None:
        """Connect `host` again."""
        _ip(self._switch, [f"link set dev {host.name} master lan"])


def command(process: "subprocess.Popen[str]") -> psutil.Process:
    """The command that was started on a host, to be sent signals: `process` is the nsenter that waits for it."""
    return psutil.Process(process.pid).children()[0]


def why_not() -> str | None:
    """Why this machine cannot emulate hosts; None if it can."""
    missing = [name for name in ("unshare", "nsenter", "ip", "mount") if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} on this machine"
    probe = subprocess.run(
        ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "sh", "-ec", _PROBE], capture_output=True, text=True
    )
    return f"no namespaces of network and processes: {probe.stderr.strip()}" if probe.returncode else None


@contextlib.contextmanager
def hosts(*names: str) -> Iterator[Lan]:
    """Hosts that reach each other by name and address, and no other host."""
    table = "127.0.0.1 localhost\n" + "".join(f"{_NET}.{n} {name}\n" for n, name in enumerate(names, 1))
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(_holder(["--net"]))
        members = []
        for number, name in enumerate(names, 1):
            init = stack.enter_context(_holder([*_NAMESPACES, "--mount-proc"], _HOST, name, table))
            members.append(Host(name, f"{_NET}.{number}", init))
        _ip(switch, ["link add name lan type bridge", "link set dev lan up", *_cables(members)])
        for host in members:
            _ip(host.init, ["link set dev lo up", f"addr add {host.address}/24 dev eth0", "link set dev eth0 up"])
            # Permanent neighbor entries: the kernel reports no error for packets to a host that is disconnected, as if
            # the host were behind a router.
            _ip(host.init, (f"neigh add {o.address} lladdr {_mac(o)} dev eth0" for o in members if o is not host))
        yield Lan(switch, members)


def _cables(members: list[Host]) -> Iterator[str]:
    for host in members:
        yield f"link add name {host.name} type veth peer name eth0 address {_mac(host)} netns {host.init}"
        yield f"link set dev {host.name} master lan up"


def _mac(host: Host) -> str:
    return f"02:00:00:00:00:{int(host.address.rpartition('.')[2]):02x}"


@contextlib.contextmanager
def _holder(namespaces: list[str], script: str = "", *arguments: str) -> Iterator[int]:
    """The id of a process that runs `script` and then keeps new namespaces while its standard input is open."""
    shell = ["sh", "-ec", f"{script}\necho ready\nexec cat", "sh", *arguments]
    holder = subprocess.Popen(
        ["unshare", *namespaces, "--fork", "--kill-child", *shell],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # the test handles a terminal's Ctrl-C and then ends this process
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        yield psutil.Process(holder.pid).children()[0].pid
    finally:
        holder.communicate()


def _ip(process: int, lines: Iterable[str]) -> None:
    """Run ip's subcommands in the network of a process."""
    enter = ["nsenter", "--target", str(process), "--net", "ip", "-batch", "-"]
    subprocess.run(enter, input="\n".join(lines), text=True, check=True)

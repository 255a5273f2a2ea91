"""Several hosts emulated on one machine: namespaces of network, processes and host name, connected by a bridge.

A host is its init process, a `cat` that ends when this process ends for any reason. The kernel then kills all processes
of the host and removes its network: no name, file or link is left to be cleaned up.
"""

import contextlib
import itertools
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
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
    number: int
    init: int
    """process id"""

    @property
    def address(self) -> str:
        return _address(self.number)

    def python(self, *arguments: str) -> tuple[str, ...]:
        """Arguments of `run` and `started` for `python ARGUMENTS` on this host."""
        return ("-S", str(PROGRAMS / "enter_host.py"), str(self.init), *arguments)


class Lan:
    """Hosts on one bridge; unpacks to them in order."""

    def __init__(self, switch: int) -> None:
        self._switch = switch
        self._hosts: list[Host] = []
        self._numbers = itertools.count(1)

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts)

    @contextlib.contextmanager
    def host(self, name: str, hosts_file: str) -> Iterator[Host]:
        """One more host within the block, at an address that no host had before."""
        number = next(self._numbers)
        with holder([*_NAMESPACES, "--mount-proc"], _HOST, name, hosts_file) as init:
            host = Host(name, number, init)
            cable = f"link add name {_port(host)} type veth peer name eth0 address {_mac(host)} netns {init}"
            _ip(self._switch, [cable, f"link set dev {_port(host)} master lan up"])
            _ip(init, ["link set dev lo up", f"addr add {host.address}/24 dev eth0", "link set dev eth0 up"])
            self._hosts.append(host)
            try:
                yield host
            finally:
                self._hosts.remove(host)

    def partition(self, host: Host) -> None:
        """Drop all packets from and to `host` from now on."""
        _ip(self._switch, [f"link set dev {_port(host)} nomaster"])

    def heal(self, host: Host) -> None:
        """Connect `host` again."""
        _ip(self._switch, [f"link set dev {_port(host)} master lan"])


def command(process: "subprocess.Popen[str]") -> psutil.Process:
    """The command that was started on a host, to be sent signals: `process` is the nsenter that waits for it."""
    return psutil.Process(process.pid).children()[0]


def why_not() -> str | None:
    """Why this machine cannot emulate hosts; None if it can."""
    missing = [name for name in ("unshare", "nsenter", "setpriv", "ip", "mount") if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} on this machine"
    probe = subprocess.run(
        ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "sh", "-ec", _PROBE], capture_output=True, text=True
    )
    return f"no namespaces of network and processes: {probe.stderr.strip()}" if probe.returncode else None


@contextlib.contextmanager
def lan() -> Iterator[Lan]:
    """A bridge that has no host yet."""
    with holder(["--net"]) as switch:
        _ip(switch, ["link add name lan type bridge", "link set dev lan up"])
        yield Lan(switch)


@contextlib.contextmanager
def hosts(*names: str) -> Iterator[Lan]:
    """Hosts that reach each other by name and address, and no other host."""
    table = "127.0.0.1 localhost\n" + "".join(f"{_address(n)} {name}\n" for n, name in enumerate(names, 1))
    with lan() as members, contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(members.host(name, table))
        for host in members:
            # Permanent neighbor entries: the kernel reports no error for packets to a host that is disconnected, as if
            # the host were behind a router.
            _ip(host.init, (f"neigh add {o.address} lladdr {_mac(o)} dev eth0" for o in members if o is not host))
        yield members


def _address(number: int) -> str:
    return f"{_NET}.{number}"


def _mac(host: Host) -> str:
    return f"02:00:00:00:00:{host.number:02x}"


def _port(host: Host) -> str:
    """The name of the bridge's end of the cable to a host."""
    return f"host{host.number}"


@contextlib.contextmanager
def holder(namespaces: Sequence[str], script: str = "", *arguments: str, host: Host | None = None) -> Iterator[int]:
    """The id of a process that runs `script` and then keeps new namespaces while its standard input is open.

    The namespaces are those of `host`, but for the new ones; all processes of a new process namespace end with it.
    """
    shell = ["sh", "-ec", f"{script}\necho ready\nexec cat", "sh", *arguments]
    process = subprocess.Popen(
        [*(entering(host.init) if host else ()), "unshare", *namespaces, "--fork", "--kill-child", *shell],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # the test handles a terminal's Ctrl-C and then ends this process
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield psutil.Process(process.pid).children(recursive=True)[-1].pid
    finally:
        process.communicate()


def entering(process: int) -> tuple[str, ...]:
    """The beginning of a command that is to run in the namespaces of a process."""
    return ("nsenter", "--target", str(process), *_NAMESPACES)


def _ip(process: int, lines: Iterable[str]) -> None:
    """Run ip's subcommands in the network of a process."""
    enter = ["nsenter", "--target", str(process), "--net", "ip", "-batch", "-"]
    subprocess.run(enter, input="\n".join(lines), text=True, check=True)

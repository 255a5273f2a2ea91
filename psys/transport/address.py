"""Sockets and network interfaces: where a run listens, and when an idle connection counts as broken."""

import contextlib
import errno
import os
import re
import socket
from ipaddress import ip_address

import psutil

from psys.errors import PsysError, reason_of

_KEEPALIVE_PROBES = 10
_LABEL = re.compile(r"\w([\w-]{0,61}\w)?", re.ASCII)  # between two dots of a host name
_NAME_CHARACTERS = 253
_ADVICE = "give --listen an address of this host, or 0.0.0.0 for all of them"


def check_address(host: str, port: int) -> None:
    """Raises PsysError if nothing can ever be reached at host:port.

    `host` is then neither an IP address nor a name that DNS can hold, or `port` is no number of a port.
    """
    if not 0 < port < 65536:
        raise PsysError(f"{host}:{port}: a port is a number from 1 to 65535")
    with contextlib.suppress(ValueError):
        ip_address(host)
        return
    try:
        name = host.encode("idna").decode().removesuffix(".")
    except UnicodeError:  # of an empty part, among others
        name = ""
    parts = name.split(".")
    possible = len(name) <= _NAME_CHARACTERS and all(_LABEL.fullmatch(part) for part in parts)
    if possible and parts[-1].isdigit():  # no name ends like this
        try:
            socket.inet_aton(name)
        except OSError:
            possible = False
    if not possible:
        raise PsysError(
            f"'{host}' is neither an IP address nor a possible host name: letters, digits and hyphens, at most 63 "
            f"between two dots and {_NAME_CHARACTERS} in all"
        )


def listen(address: str, port: int) -> socket.socket:
    """A listening socket (port 0: any free port). Raises PsysError if it is taken, or `address` is not this host's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(1024)
    except (OSError, UnicodeError, TypeError) as error:
        listener.close()
        raise PsysError(_why_not_listening(address, port, error)) from None
    return listener


def _why_not_listening(address: str, port: int, error: Exception) -> str:
    match error:
        case OSError(errno=errno.EADDRINUSE):
            return f"--port {port} is in use on {address}: choose another port, or 0 for any that is free"
        case OSError(errno=errno.EACCES):
            return f"--port {port} is one that only root may use: choose one above 1023, or 0 for any that is free"
        case OSError(errno=errno.EADDRNOTAVAIL):
            return f"--listen {address} is an address of another host: {_ADVICE}"
        case socket.gaierror() | UnicodeError() | TypeError():
            return f"--listen {address}: there is no host of that name; {_ADVICE}"
        case _:
            return f"cannot listen at --listen {address}, --port {port}: {reason_of(error)}"


def only_interface_of(address: str) -> None:
    """Make TensorPipe use the interface that has `address`, instead of the interface of the host name.

    Raises PsysError if no interface of this host has the address.
    """
    if address in ("0.0.0.0", "::"):
        return
    wanted = ip_address(address.split("%")[0])
    for name, addresses in psutil.net_if_addrs().items():
        own = {ip_address(a.address.split("%")[0]) for a in addresses if a.family in (socket.AF_INET, socket.AF_INET6)}
        # Every address of 127.0.0.0/8 belongs to the loopback interface, which lists only one of them.
        if wanted in own or (wanted.is_loopback and any(a.is_loopback for a in own)):
            os.environ["TP_SOCKET_IFNAME"] = name
            return
    raise PsysError(f"no network interface of this host has the address {address}: {_ADVICE}")


def enable_keepalive(connection: socket.socket, seconds: float) -> None:
    """Break the connection when the other host has not answered about ten probes, one every `seconds`."""
    interval = max(1, round(seconds))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, interval)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)

"""Sockets and network interfaces: where a run listens, and when an idle connection counts as broken."""

import os
import socket
from ipaddress import ip_address

import psutil

from psys.errors import PsysError

_KEEPALIVE_PROBES = 10


def listen(address: str, port: int) -> socket.socket:
    """A listening socket (port 0: any free port). Raises PsysError if it is taken, or `address` not this host's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(1024)
    except (OSError, UnicodeError, TypeError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "no such address"
        where = f"{address} port {port}"
        raise PsysError(f"cannot listen on {where}: {reason}; choose another --port or --listen") from None
    return listener


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
    raise PsysError(f"no network interface of this host has the address {address}: name one with --listen")


def enable_keepalive(connection: socket.socket, seconds: float) -> None:
    """Break the connection when the other host has not answered about ten probes, one every `seconds`."""
    interval = max(1, round(seconds))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, interval)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)

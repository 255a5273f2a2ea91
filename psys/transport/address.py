"""Where a run is found: the socket that it listens at, and the network interface in use."""

import os
import socket
from ipaddress import ip_address

import psutil

from psys.errors import PsysError


def listen(address: str, port: int) -> socket.socket:
    """A socket that workers will join at. Raises PsysError when the port is taken or the address is not this host's."""
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
    """Keep TensorPipe's own ports on the interface that has `address`; by itself it would take the host name's.

    Raises PsysError when none has it.
    """
    if address in ("0.0.0.0", "::"):
        return
    wanted = ip_address(address.split("%")[0])
    for name, addresses in psutil.net_if_addrs().items():
        own = {ip_address(a.address.split("%")[0]) for a in addresses if a.family in (socket.AF_INET, socket.AF_INET6)}
        # Every address of 127.0.0.0/8 is the loopback interface's, which names one of them.
        if wanted in own or (wanted.is_loopback and any(a.is_loopback for a in own)):
            os.environ["TP_SOCKET_IFNAME"] = name
            return
    raise PsysError(f"no network interface of this host has the address {address}: name one with --listen")

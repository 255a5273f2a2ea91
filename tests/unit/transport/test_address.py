"""Sockets and network interfaces."""

import errno
import os
import socket

import pytest

from psys.errors import PsysError
from psys.transport.address import check_address, enable_keepalive, listen, only_interface_of


@pytest.fixture(autouse=True)
def _no_interface_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TP_SOCKET_IFNAME", "none")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
def test_every_loopback_address_belongs_to_the_loopback_interface(address: str) -> None:
    only_interface_of(address)
    assert os.environ["TP_SOCKET_IFNAME"] == "lo"


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_the_address_of_all_interfaces_chooses_none(address: str) -> None:
    only_interface_of(address)
    assert os.environ["TP_SOCKET_IFNAME"] == "none"


def test_an_address_of_another_host_is_refused() -> None:
    with pytest.raises(PsysError, match=r"no network interface of this host has the address 192\.0\.2\.7"):
        only_interface_of("192.0.2.7")


def test_port_0_listens_on_a_free_port() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(PsysError, match=rf"--port {port} is in use on 127.0.0.1: choose another"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("192.0.2.7", "is an address of another host"),
        ("no.such.host.invalid", "there is no host of that name"),
        ("a" * 300, "there is no host of that name"),
        ("a\0b", "there is no host of that name"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_refused(address: str, reason: str) -> None:
    with pytest.raises(PsysError, match=f"--listen {address}:? {reason}.* give --listen an address of this host"):
        listen(address, 0)


def test_a_port_that_only_root_may_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(self: socket.socket, address: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", bind)
    with pytest.raises(PsysError, match="--port 80 is one that only root may use: choose one above 1023"):
        listen("127.0.0.1", 80)


@pytest.mark.parametrize(
    "host",
    ["localhost", "psys-server_0.example.", "127.1", "10.0.0.7", "::1", "fe80::1%eth0", "0x7f.1", "bücher.example"],
)
def test_possible_hosts(host: str) -> None:
    check_address(host, 1)


@pytest.mark.parametrize("host", ["", "a b", "a..b", ".a", "-a", "a/b", "1.2.3.400", "a.1", "x" * 64, "x." * 127 + "x"])
def test_impossible_hosts(host: str) -> None:
    with pytest.raises(PsysError, match="is neither an IP address nor a possible host name"):
        check_address(host, 1)


@pytest.mark.parametrize(("seconds", "interval"), [(0.01, 1), (15.0, 15)])
def test_keepalive_probes_have_the_interval(seconds: float, interval: int) -> None:
    with socket.socket() as connection:
        enable_keepalive(connection, seconds)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == interval
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == interval

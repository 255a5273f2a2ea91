"""Sockets and network interfaces."""

import os
import socket

import pytest

from psys.errors import PsysError
from psys.transport.address import enable_keepalive, listen, only_interface_of


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
        with pytest.raises(PsysError, match=rf"cannot listen on 127.0.0.1 port {port}: Address already in use; choose"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("address", ["192.0.2.7", "no.such.host.invalid", "a" * 300, "a\0b"])
def test_an_address_that_cannot_be_listened_on_is_refused(address: str) -> None:
    with pytest.raises(PsysError, match=r"cannot listen on .*; choose another --port or --listen"):
        listen(address, 0)


@pytest.mark.parametrize(("seconds", "interval"), [(0.01, 1), (15.0, 15)])
def test_keepalive_probes_have_the_interval(seconds: float, interval: int) -> None:
    with socket.socket() as connection:
        enable_keepalive(connection, seconds)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == interval
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == interval

"""The interface that TensorPipe is kept on."""

import os

import pytest

from psys.errors import PsysError
from psys.transport.address import only_interface_of


@pytest.fixture(autouse=True)
def _free_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TP_SOCKET_IFNAME", "none")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
def test_every_loopback_address_is_the_loopback_interface(address: str) -> None:
    only_interface_of(address)
    assert os.environ["TP_SOCKET_IFNAME"] == "lo"


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_all_addresses_leave_the_choice_open(address: str) -> None:
    only_interface_of(address)
    assert os.environ["TP_SOCKET_IFNAME"] == "none"


def test_an_address_of_another_host_is_refused() -> None:
    with pytest.raises(PsysError, match=r"no network interface of this host has the address 192\.0\.2\.7"):
        only_interface_of("192.0.2.7")

"""Clusters that cannot be joined. (Of one that can: tests/integration/test_ray_engine.py.)"""

import socket
import sys

import pytest

from psys.errors import PsysError
from psys.ray_cluster import joined_cluster


@pytest.mark.parametrize("address", ["127.0.0.1:9", "no.such.host.invalid:6379", "127.0.0.1:99999999"])
def test_address_that_does_not_answer(address: str) -> None:
    with pytest.raises(PsysError, match=f"nothing answers at ray_address {address}"), joined_cluster(address):
        pass


@pytest.mark.parametrize("address", ["foo", "127.0.0.1", ":6379", "127.0.0.1:", "127.0.0.1:port"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(PsysError, match=f"ray_address is '{address}', expected HOST:PORT"), joined_cluster(address):
        pass


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(PsysError, match="needs Ray, which is not installed here"), joined_cluster(address):
            pass

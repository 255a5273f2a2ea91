import signal
from pathlib import Path

import pytest

from psys.data.store import PreparedStore
from tests.support.stores import write_small_store


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="storms of full length: 100 workers and 50 servers killed")


@pytest.fixture(scope="session", autouse=True)
def default_interrupt_handler() -> None:
    """A shell starts background jobs, and nohup any command, with SIGINT ignored; the tests send it to themselves."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> PreparedStore:
    """160 training and 40 test images of the embedded sample."""
    return write_small_store(tmp_path_factory.mktemp("stores") / "small")


@pytest.fixture(scope="session")
def small_store_path(small_store: PreparedStore) -> Path:
    return small_store.path

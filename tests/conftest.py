from pathlib import Path

import pytest

from psys.data.store import PreparedStore
from tests.support.stores import write_small_store


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> PreparedStore:
    """160 training and 40 test images of the embedded sample."""
    return write_small_store(tmp_path_factory.mktemp("stores") / "small")


@pytest.fixture(scope="session")
def small_store_path(small_store: PreparedStore) -> Path:
    return small_store.path

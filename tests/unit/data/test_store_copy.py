"""Copies of a prepared store on nodes that do not share the driver's disk."""

import shutil
from pathlib import Path

import pytest

from psys.data.store import PreparedStore
from psys.data.store_copy import find_store, packed_store, unpacked_store
from psys.errors import PsysError


def test_a_node_without_the_store_unpacks_the_one_that_was_sent(
    small_store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    content = PreparedStore.open(small_store_path).content_hash
    assert find_store(small_store_path, content) == small_store_path
    assert find_store(tmp_path / "none", content) is None
    unpacked = unpacked_store(tmp_path / "none", content, packed_store(small_store_path))
    assert unpacked.is_relative_to(tmp_path)
    assert PreparedStore.open(unpacked).content_hash == content
    shutil.copytree(small_store_path, tmp_path / "another")
    (tmp_path / "another" / "manifest.json").write_text(
        (small_store_path / "manifest.json").read_text().replace('"sha256": "', '"sha256": "0')
    )
    assert find_store(tmp_path / "another", content) == unpacked


def test_a_store_that_is_too_large_to_send_is_missing(
    small_store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psys.data.store_copy._SENT_BYTES", 1)
    packed = packed_store(small_store_path)
    with pytest.raises(PsysError, match=f"needs a copy of the store at {tmp_path}/none, which is too large to send"):
        unpacked_store(tmp_path / "none", "hash", packed)

"""The process that an actor looks after; without Ray, of which it knows nothing."""

from pathlib import Path

import pytest

from psys.cluster.node_process import NodeProcess, Part, Report
from psys.data.store import PreparedStore
from psys.data.store_copy import packed_store

NOWHERE = Part("worker", 0, "127.0.0.1", 99999, "token", 1)


def ended(actor: NodeProcess) -> Report:
    """The exit code of an actor's process, and all that it printed."""
    report, output = actor.poll(), b""
    while report.exitcode is None:
        output += report.output
        report = actor.poll()
    return report._replace(output=output + report.output)


def test_worker_on_a_node_without_the_store_asks_for_it(
    small_store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    actor, content = NodeProcess(), PreparedStore.open(small_store_path).content_hash
    assert actor.start(NOWHERE, tmp_path / "none", content, None) is None
    assert actor.start(NOWHERE, tmp_path / "none", content, packed_store(small_store_path)) == Report(None, b"")
    code, output = ended(actor)
    assert code == 2
    assert output == b"psys: error: 127.0.0.1:99999: a port is a number from 1 to 65535\n"


def test_store_that_is_too_large_to_send_is_an_error_of_the_user(tmp_path: Path) -> None:
    report = NodeProcess().start(NOWHERE, tmp_path / "none", "another", b"")
    assert report
    assert report.exitcode == 2
    assert report.output.startswith(b"psys: error: ")
    assert b"needs a copy of the store" in report.output


def test_server_leaves_when_it_is_told_to(tmp_path: Path) -> None:
    actor = NodeProcess()
    actor.start(Part("server", 1, "127.0.0.1", 9, "token", 1), tmp_path / "none", "", None)
    while b"waiting for 127.0.0.1:9" not in actor.poll().output:
        pass
    actor.terminate()
    assert ended(actor) == Report(0, b"")

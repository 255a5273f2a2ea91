"""A run whose workers and servers are actors on the nodes of a Ray cluster, of which one is lost."""

import contextlib
import signal
from pathlib import Path

import psutil

from tests.support.processes import (
    PS,
    audited,
    finished,
    resumes,
    run,
    small_run,
    started,
    updates,
    updating,
    wait_until,
)
from tests.support.ray_nodes import Node, ray_node


def of_the_run(node: Node, *words: str) -> list[psutil.Process]:
    """The processes of a run on a node, and their actors, whose command lines have these words."""
    found = []
    for each in node.processes():
        with contextlib.suppress(psutil.Error):
            line = " ".join(each.cmdline())
            if ("psys.cluster.node" in line or "NodeProcess" in line) and all(word in line for word in words):
                found.append(each)
    return found


def test_lost_node_and_server_cost_no_batch_and_nothing_is_left(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    with ray_node(cpus=3) as head, ray_node(cpus=1, head=head) as other:
        more = ("--servers", "2", "--epochs", "5000", "--checkpoint-every", "5", "--snapshot-epochs", "100")
        command = (PS, *small_run(small_store_path, "r", *more), "--ray-address", head.address)
        with started(*command, cwd=tmp_path, env=head.environment) as process:
            wait_until(lambda: len(updating(path)) == 2, "updates of both workers", process)
            assert of_the_run(other), "each node has processes of the run"
            other.kill()
            wait_until(lambda: len(updating(path)) > 2, "updates of a worker that replaces the lost one", process)
            before = len(resumes(path))
            of_the_run(head, "psys.cluster.node server")[0].kill()
            wait_until(lambda: len(resumes(path)) > before, "the servers to go on from a checkpoint", process)
            reached = len(updates(path))
            wait_until(lambda: len(updates(path)) > reached, "updates with another server", process)
            process.send_signal(signal.SIGINT)
            stopped = finished(process)
        assert stopped.code == 130, stopped.err
        assert of_the_run(head) == []
    assert audited(path).lost == 0
    logs = "".join(log.read_text() for log in (path / "logs").glob("worker*.log"))
    assert "lost the servers" in logs, "what processes on the nodes print comes to the run"
    assert "Ray lost its node" in logs

    # The directory is that of any run: it goes on without the cluster.
    epochs = str(int(updates(path)[-1].epochs) + 2)
    done = run(PS, "--resume", str(path), "--epochs", epochs, "--servers", "1", cwd=tmp_path)
    assert done.code == 0, done.err
    assert audited(path).unfinished == 0

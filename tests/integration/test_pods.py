"""The manifests of k8s/ as pods that really run, each on an emulated host: killed, evicted, replaced."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from psys.run.directory import RunDirectory
from tests.support import hosts
from tests.support.manifests import Object, rendered
from tests.support.pods import Cluster, Pod, cluster
from tests.support.processes import audited, resumes, updates, updating

pytestmark = pytest.mark.timeout(240)

TOKEN: Object = {"kind": "Secret", "metadata": {"name": "psys-token"}, "stringData": {"token": "of-the-test"}}
WORKERS = 2
SHORT = ("--model=resnet8", "--epochs=10", "--batch-size=64", "--augment.views=1", "--no-export")


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Cluster]:
    if reason := hosts.why_not():
        pytest.skip(reason)
    with cluster(tmp_path) as pods:
        yield pods


def preparation() -> list[Object]:
    """The overlay `prepare` with quickly computed masks, on as many cores as test machines have."""
    objects = rendered("prepare")
    arguments = container_of(objects, "psys-prepare")["args"]
    arguments += ["--segment.strategy=seeded", "--segment.scale=0.5", "--actors=2"]
    return objects


def training(overlay: str) -> list[Object]:
    """An overlay with a run of seconds on two workers."""
    objects = [*rendered(overlay), TOKEN]
    named(objects, "ConfigMap", "psys-run")["data"]["WORKERS"] = str(WORKERS)
    named(objects, "Job", "psys-workers")["spec"] |= {"completions": WORKERS, "parallelism": WORKERS}
    container_of(objects, "psys-server")["args"] += SHORT
    return objects


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The object of that name; kustomize adds a hash to the names of config maps."""
    (found,) = (each for each in objects if each["kind"] == kind and each["metadata"]["name"].startswith(name))
    return found


def container_of(objects: list[Object], job: str) -> Object:
    (container,) = named(objects, "Job", job)["spec"]["template"]["spec"]["containers"]
    return container


def test_async_loses_a_worker_and_its_server_is_evicted(pods: Cluster) -> None:
    pods.apply(preparation())
    pods.wait_until(lambda: pods.jobs["psys-prepare"].complete, "the store")

    run = RunDirectory(pods.claims / "psys-runs" / "async")
    pods.apply(training("async"))
    pods.wait_until(lambda: len(updating(run.path)) == WORKERS, "updates of all workers")
    pods.pods("psys-workers")[0].kill()
    before = len(updates(run.path))
    pods.wait_until(lambda: len(updating(run.path, before)) == WORKERS, "updates of the other worker and its replacement")

    (server,) = pods.pods("psys-server")
    server.terminate()
    pods.wait_until(lambda: server.ended, "the server's checkpoint")
    assert server.codes == {"psys": 130}  # in less than the grace period
    pods.wait_until(lambda: bool(resumes(run.path)), "the server's replacement")
    before = len(updates(run.path))
    assert resumes(run.path)[0].version == before
    pods.wait_until(lambda: len(updating(run.path, before)) == WORKERS, "updates of all workers again")

    pods.wait_until(lambda: all(job.complete for job in pods.jobs.values()), "the end of the run and of its workers")
    assert run.complete
    assert audited(run.path).unfinished == 0

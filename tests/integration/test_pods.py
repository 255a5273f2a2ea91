"""The manifests of k8s/ as pods that really run, each on an emulated host: killed, evicted, replaced."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from psys.data.sample import read_sample
from psys.ps.events import CheckpointSaved
from psys.run.directory import RunDirectory
from tests.support import hosts, network_policy
from tests.support.containers import image_environment
from tests.support.images import encoded, pixels_of
from tests.support.manifests import Object, rendered
from tests.support.pods import Cluster, cluster
from tests.support.processes import audited, events, resumes, updates, updating
from tests.support.studies import study_settings

pytestmark = pytest.mark.timeout(480)

TOKEN: Object = {"kind": "Secret", "metadata": {"name": "psys-token"}, "stringData": {"token": "of-the-test"}}
WORKERS = 2
SHORT = ("--epochs=80", "--batch-size=48", "--augment.views=1", "--snapshot-epochs=40", "--no-export")
FACTS = """
import errno, json, os, pathlib, socket, sys
os.path.exists("/data/results/began") or sys.exit(pathlib.Path("/data/results/began").touch() or 3)
def write(folder):
    try:
        pathlib.Path(folder, "file").touch()
    except OSError as error:
        return errno.errorcode[error.errno]
status = dict(line.split(":\t") for line in open("/proc/self/status").read().splitlines())
json.dump({
    "user": [os.getuid(), os.getgid(), os.getgroups()],
    "rights": [status["CapPrm"], status["CapBnd"], status["NoNewPrivs"]],
    "variables": dict(os.environ),
    "arguments": sys.argv[1:],
    "host": [socket.gethostname(), socket.gethostbyname("psys-server")],
    "writing": {folder: write(folder) for folder in sys.argv[-1].split(",")},
    "token": open("/etc/psys/token/token").read(),
}, open("/data/results/facts.json", "w"))
"""
"""writes down what it finds, when it is started for the second time"""

PAIR = """
- {kind: ConfigMap, metadata: {name: settings}, data: {GREETING: hello}}
- {kind: Secret, metadata: {name: secrets}, data: {name: cGFpcg==}}
- {kind: Service, metadata: {name: pair}, spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {of: pair}}}
- kind: Job
  metadata: {name: pair, namespace: test}
  spec:
    completionMode: Indexed
    completions: 2
    parallelism: 2
    backoffLimit: 0
    template:
      metadata: {labels: {of: pair}}
      spec:
        subdomain: pair
        restartPolicy: Never
        terminationGracePeriodSeconds: 1
        shareProcessNamespace: true
        securityContext: {runAsUser: 10001, runAsGroup: 10001, fsGroup: 10001}
        volumes: [{name: shared, emptyDir: {medium: Memory, sizeLimit: 1Mi}}]
        initContainers:
          - &container
            name: first
            command: [sh, -c, 'echo "$0 $ADDRESS" > /shared/written']
            args: ["$(TEXT) $(JOB_COMPLETION_INDEX) $(UNKNOWN) $$(TEXT)"]
            env:
              - {name: GREETING, valueFrom: {configMapKeyRef: {name: settings, key: GREETING}}}
              - {name: NAME, valueFrom: {secretKeyRef: {name: secrets, key: name}}}
              - {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
              - {name: TEXT, value: $(GREETING) $(NAME)}
            volumeMounts: [{name: shared, mountPath: /shared}]
            securityContext:
              {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
        containers:
          - <<: *container
            name: second
            command: [sh, -c, "cat /shared/written; getent hosts $(hostname).pair.test.svc.cluster.local"]
            args: []
"""


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Cluster]:
    if reason := hosts.why_not():
        pytest.skip(reason)
    with cluster(tmp_path) as pods:
        yield pods


def write_images(folder: Path) -> None:
    """Twenty images of each class of the sample, as k8s/README.md says for images of one's own."""
    sample = read_sample()
    for label, name in enumerate(sample.classes):
        (folder / name).mkdir(parents=True)
        for number, row in enumerate(np.flatnonzero(sample.train.labels == label)[:20]):
            (folder / name / f"{number}.png").write_bytes(encoded(pixels_of(sample.train)[row]))


def preparation() -> list[Object]:
    """The overlay `prepare` for these images, with quickly computed masks."""
    objects = rendered("prepare")
    arguments = container_of(objects, "psys-prepare")["args"]
    arguments[arguments.index("--source=sample")] = "--source=/data/stores/sources/images"
    arguments += ["--segment.strategy=seeded", "--segment.scale=0.5"]
    return objects


def training(overlay: str) -> list[Object]:
    """An overlay with a run of seconds on two workers."""
    objects = [*rendered(overlay), TOKEN]
    named(objects, "ConfigMap", "psys-run")["data"]["WORKERS"] = str(WORKERS)
    named(objects, "Job", "psys-workers")["spec"] |= {"completions": WORKERS, "parallelism": WORKERS}
    container_of(objects, "psys-server")["args"] += SHORT
    container_of(objects, "psys-workers")["args"].append("--threads=1")  # as their limit of CPUs, which is not emulated
    return objects


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The object of that name; kustomize adds a hash to the names of config maps."""
    (found,) = (each for each in objects if each["kind"] == kind and each["metadata"]["name"].startswith(name))
    return found


def container_of(objects: list[Object], job: str) -> Object:
    containers: list[Object] = named(objects, "Job", job)["spec"]["template"]["spec"]["containers"]
    assert len(containers) == 1
    return containers[0]


def test_container_has_what_its_manifest_gives_it_and_nothing_else(pods: Cluster) -> None:
    objects = training("async")
    writable = {"/etc": False, "/opt/psys": False, "/data/stores": False, "/data/results": True, "/tmp": True}
    container_of(objects, "psys-server")["command"] = ["python", "-c", FACTS]
    container_of(objects, "psys-server")["args"].append(",".join(writable))
    pods.apply([each for each in objects if each["metadata"]["name"] not in ("psys-workers", "psys-remote-servers")])
    pods.wait_until(lambda: bool(pods.jobs["psys-server"].pods), "the pod")
    (pod,) = pods.pods("psys-server")
    pods.wait_until(lambda: pods.jobs["psys-server"].complete, "the end of its second start")
    assert pod.restarts == 1
    facts = json.loads((pods.claims / "psys-results" / "facts.json").read_text())
    assert facts["user"] == [10001, 10001, [10001]]
    assert facts["rights"] == ["0" * 16, "0" * 16, "1"]
    assert facts["host"] == [pod.host.name, pod.host.address]
    assert facts["writing"] == {folder: None if allowed else "EROFS" for folder, allowed in writable.items()}
    assert facts["token"] == TOKEN["stringData"]["token"]
    settings = {"HOME": "/tmp", **named(objects, "ConfigMap", "psys-run")["data"]}
    facts["variables"].pop("LC_CTYPE", None)  # Python sets it
    assert facts["variables"] == image_environment() | settings
    assert f"--workers={WORKERS}" in facts["arguments"]


def test_pods_of_an_indexed_job_with_init_containers(pods: Cluster) -> None:
    pods.apply(yaml.safe_load(PAIR))
    pods.wait_until(lambda: len(pods.jobs["pair"].pods) == 2, "the pods")
    first, second = pods.pods("pair")
    assert (first.host.name, second.host.name) == ("pair-0", "pair-1")
    pods.wait_until(lambda: pods.jobs["pair"].complete, "their end")
    for pod in (first, second):
        written, resolved = pod.log.read_text().splitlines()
        assert written == f"hello pair {pod.index} $(UNKNOWN) $(TEXT) {pod.host.address}"
        assert resolved.split()[0] == pod.host.address


def test_only_training_pods_reach_the_server(pods: Cluster) -> None:
    if reason := network_policy.why_not():
        pytest.skip(reason)
    objects = training("async")
    serve = ["python", "-m", "http.server", "7000", "--directory", "/tmp"]
    container_of(objects, "psys-server").update(command=serve, args=[])
    connect = "import socket; socket.create_connection(('psys-server', 7000), timeout=1).close()"
    container_of(objects, "psys-workers").update(command=["python", "-c", connect], args=[])
    stranger = copy.deepcopy(named(objects, "Job", "psys-workers"))
    stranger["metadata"]["name"] = "stranger"
    stranger["spec"]["template"]["metadata"]["labels"].pop("psys/network")
    pods.apply([*(each for each in objects if each["metadata"]["name"] != "psys-remote-servers"), stranger])

    pods.wait_until(lambda: pods.jobs["psys-workers"].complete, "the workers' connections")
    pods.wait_until(lambda: pods.jobs["stranger"].failures > WORKERS, "the strangers' attempts")
    assert not pods.jobs["stranger"].succeeded


def test_nothing_is_left_of_the_pods_of_a_test_that_fails(tmp_path: Path) -> None:
    if reason := hosts.why_not():
        pytest.skip(reason)
    objects = training("async")
    for job in ("psys-server", "psys-workers", "psys-remote-servers"):
        container_of(objects, job).update(command=["sh", "-c", "sleep 1000 & sleep 1000"], args=[])
    seen: list[psutil.Process] = []

    def lose_a_pod_and_fail() -> None:
        with cluster(tmp_path) as pods:
            pods.apply(objects)
            pods.wait_until(lambda: sleeping() == 2 * (2 + WORKERS), "the pods")
            pods.pods("psys-workers")[0].kill()
            assert sleeping() == 2 * (1 + WORKERS)
            pods.wait_until(lambda: sleeping() == 2 * (2 + WORKERS), "the replacement")
            seen.extend(psutil.Process().children(recursive=True))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lose_a_pod_and_fail()
    assert not [process for process in seen if process.is_running()]


def sleeping() -> int:
    return [process.name() for process in psutil.Process().children(recursive=True)].count("sleep")


def test_async_loses_a_worker_and_its_server_is_evicted(pods: Cluster) -> None:
    write_images(pods.claims / "psys-stores" / "sources" / "images")
    pods.apply(preparation())
    pods.wait_until(lambda: pods.jobs["psys-prepare"].complete, "the store")

    run = RunDirectory(pods.claims / "psys-results" / "runs" / "async")
    pods.apply(training("async"))
    pods.wait_until(lambda: len(updating(run.path)) == WORKERS, "updates of all workers")
    pods.pods("psys-workers")[0].kill()
    before = len(updates(run.path))
    pods.wait_until(lambda: len(updating(run.path, before)) == WORKERS, "updates of a replacement")

    (server,) = pods.pods("psys-server")
    server.evict()
    pods.wait_until(lambda: server.ended, "the server's checkpoint")
    assert server.codes == {"psys": 130}  # in less than the grace period
    pods.wait_until(lambda: bool(resumes(run.path)), "the server's replacement")
    before = len(updates(run.path))
    assert resumes(run.path)[0].version == before
    pods.wait_until(lambda: len(updating(run.path, before)) == WORKERS, "updates of all workers again")

    pods.wait_until(lambda: all(job.complete for job in pods.jobs.values()), "the end of the run and of its workers")
    assert run.complete
    assert audited(run.path).unfinished == 0


def test_sync_with_a_server_that_hangs_when_it_is_evicted(pods: Cluster, small_store_path: Path) -> None:
    """It is killed when the grace period ends, without a last checkpoint."""
    shutil.copytree(small_store_path, pods.claims / "psys-stores" / "sample")
    run = RunDirectory(pods.claims / "psys-results" / "runs" / "sync")
    objects = training("sync")
    container_of(objects, "psys-server")["args"] += ["--epochs=20", "--checkpoint-every=7"]
    named(objects, "Job", "psys-server")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 1
    pods.apply(objects)
    pods.wait_until(lambda: bool(events(run.path, CheckpointSaved)), "a checkpoint")

    (server,) = pods.pods("psys-server")
    for command in server.commands():
        for process in (command, *command.children(recursive=True)):
            process.suspend()
    server.evict()
    pods.wait_until(lambda: server.ended, "the end of the grace period")
    assert server.codes == {"psys": 137}
    made = len(updates(run.path))
    pods.wait_until(lambda: bool(resumes(run.path)), "the server's replacement")
    version = resumes(run.path)[0].version
    assert version % 7 == 0
    assert 0 < version <= made

    pods.wait_until(lambda: all(job.complete for job in pods.jobs.values()), "the end of the run and of its workers")
    assert run.complete
    assert audited(run.path).unfinished == 0


def test_tradeoff_goes_on_after_an_eviction(pods: Cluster, small_store_path: Path) -> None:
    shutil.copytree(small_store_path, pods.claims / "psys-stores" / "sample")
    study = pods.claims / "psys-results" / "studies" / "s"
    objects = rendered("tradeoff")
    named(objects, "ConfigMap", "psys-configs")["data"]["tradeoff.yaml"] = yaml.safe_dump(study_settings("replaced"))
    pods.apply(objects)
    trials = study / "trials.jsonl"
    pods.wait_until(lambda: trials.exists() and bool(trials.read_text()), "the first trial")
    (pod,) = pods.pods("psys-tradeoff")
    pod.evict()
    first = trials.read_text()
    pods.wait_until(lambda: pods.jobs["psys-tradeoff"].complete, "the end of the study")
    assert pod.codes == {"psys": 130}
    assert trials.read_text().startswith(first)
    assert len(trials.read_text().splitlines()) == 2
    assert (study / "report.html").exists()
    for arm in ("first", "second"):
        assert audited(study / "trials" / f"{arm}.uniform.seed0").unfinished == 0

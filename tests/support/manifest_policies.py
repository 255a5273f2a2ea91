"""What schemas do not see in the manifests: rights, limits, what happens when a pod ends, and who reaches whom.

assert faults(rendered("async")) == []
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from tests.support.manifest_checks import NAMES, Check, Faults
from tests.support.manifests import Object, commands, flags, named, pods

USER = 10001
LEAST_GRACE, LEAST_GRACE_TO_SAVE = 20, 60  # seconds to leave a run, and to save one
_PORT = {"name": "rendezvous", "containerPort": 7000}
_NO_RIGHTS = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_UNITS = {"": 1.0, "m": 1e-3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
# Whatever else a field does, it is to be thought about before it is used.
_OF_JOBS = {
    *("backoffLimit", "backoffLimitPerIndex", "completionMode", "completions", "parallelism", "podFailurePolicy"),
    *("podReplacementPolicy", "successPolicy", "template"),
}
_OF_PODS = {
    *("affinity", "automountServiceAccountToken", "containers", "enableServiceLinks", "restartPolicy"),
    *("securityContext", "serviceAccountName", "shareProcessNamespace", "terminationGracePeriodSeconds"),
    *("tolerations", "topologySpreadConstraints", "volumes"),
}
_OF_CONTAINERS = {
    *("args", "command", "env", "envFrom", "image", "imagePullPolicy", "name", "ports", "readinessProbe", "resources"),
    *("securityContext", "volumeMounts"),
}
_QUOTAS = {
    *("requests.cpu", "requests.memory", "requests.storage", "limits.cpu", "limits.memory", "pods"),
    *("services.loadbalancers", "services.nodeports"),
}


def _on_exit(action: str, *codes: int) -> Object:
    return {"action": action, "onExitCodes": {"containerName": "psys", "operator": "In", "values": [*codes]}}


# Exit codes of psys: 1, trials failed; 2, what a restart does not mend; 130, told to leave (143: while starting).
_DISRUPTED = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
_OF_JOINED = [_on_exit("FailJob", 2), _on_exit("Ignore", 130, 143)]
_OF_STUDIES = [_DISRUPTED, _on_exit("FailJob", 1, 2)]


def faults(objects: Sequence[Object]) -> list[str]:
    """Everything that is wrong with the objects of an overlay."""
    return [fault for check in (*NAMES, *POLICIES) for fault in check(objects)]


def rights(objects: Sequence[Object]) -> Faults:
    """Pods have no rights: on the host, of the root user, or in the cluster."""
    accounts = named(objects, "ServiceAccount")
    for pod in pods(objects):
        spec, own, container = pod.spec, pod.spec.get("securityContext", {}), pod.container
        user = {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
        if not user.items() <= own.items() or own.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{pod.owner}: does not run as user {USER} with the default seccomp profile"
        if container.get("securityContext") != _NO_RIGHTS:
            yield f"{pod.owner}: its container may do more than compute"
        if spec.get("serviceAccountName") not in accounts or spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.owner}: has a token of the cluster, or no account of its own"
        of_pods = _OF_PODS | ({"activeDeadlineSeconds"} if pod.owner.startswith("Pod/") else set())
        of_jobs = _OF_JOBS if "template" in pod.job else pod.job.keys()
        for name in (pod.job.keys() - of_jobs) | (spec.keys() - of_pods) | (container.keys() - _OF_CONTAINERS):
            yield f"{pod.owner}: has {name}"
        if spec.get("enableServiceLinks") is not False:
            yield f"{pod.owner}: has a variable for each service"


def images(objects: Sequence[Object]) -> Faults:
    """Images are named by version or digest; what needs ray has the image with ray."""
    needs_ray = {pod.owner for pod, line in commands(objects) if line[1:2] == ["prepare"]}
    versions = set[str]()
    for pod in pods(objects):
        image, ray = pod.container["image"], pod.owner.startswith("RayJob/") or pod.owner in needs_ray
        found = re.search(r"./psys-(train|prepare)(:\d[\w.]*|@sha256:[0-9a-f]{64})(-gpu)?$", image)
        if not found:
            yield f"{pod.owner}: image {image} is not one of psys, or has no version"
            continue
        versions.add(found[2])
        if (found[1] == "prepare") != ray:
            yield f"{pod.owner}: image {image} is not the one of its command"
        if bool(found[3]) != ("nvidia.com/gpu" in pod.container.get("resources", {}).get("limits", {})):
            yield f"{pod.owner}: a GPU and the image for GPUs belong together"
        if pod.container.get("imagePullPolicy") != "IfNotPresent":
            yield f"{pod.owner}: its image is pulled always, or never"
    if len(versions) > 1:
        yield f"the pods have images of several versions: {sorted(versions)}"


def quantity(text: Any) -> float:
    """A number of Kubernetes: 500m, 2, 4Gi. Infinite if it is none."""
    found = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi)?", str(text))
    return float(found[1]) * _UNITS[found[2] or ""] if found else math.inf


def resources(objects: Sequence[Object]) -> Faults:
    """Pods ask for what they use, within their limits, and together within the quota."""
    sums = dict[str, float]()
    computing = {pod.owner for pod, _ in commands(objects)}
    for pod in pods(objects):
        requests, limits = (pod.container.get("resources", {}).get(name, {}) for name in ("requests", "limits"))
        for name in ("cpu", "memory", "ephemeral-storage"):
            if name not in requests or name not in limits:
                yield f"{pod.owner}: no request or no limit of {name}"
        if requests != limits:
            yield f"{pod.owner}: its requests and limits differ"
        if pod.owner in computing and (
            quantity(requests.get("cpu", 0)) < 1 or quantity(requests.get("memory", 0)) < quantity("2Gi")
        ):
            yield f"{pod.owner}: has less than a CPU and 2Gi"
        for name, value in requests.items():
            if quantity(value) == math.inf:
                yield f"{pod.owner}: {name} is no quantity: {value}"
            sums[name] = sums.get(name, 0.0) + pod.replicas * quantity(value)
        for volume in pod.spec.get("volumes", []):
            size = volume.get("emptyDir", {}).get("sizeLimit", "0")
            room = limits.get("memory" if volume.get("emptyDir", {}).get("medium") else "ephemeral-storage", "0")
            if quantity(size) > quantity(room):
                yield f"{pod.owner}: volume {volume['name']} is larger than the pod may use"
        for toleration in pod.spec.get("tolerations", []):
            if toleration.get("operator") not in ("Exists", "Equal"):
                yield f"{pod.owner}: a toleration has no operator"
    needed = {f"{kind}.{name}": sums.get(name, 0.0) for kind in ("requests", "limits") for name in ("cpu", "memory")}
    needed["pods"] = sum(pod.replicas for pod in pods(objects))
    claims = named(objects, "PersistentVolumeClaim").values()
    needed["requests.storage"] = sum(quantity(claim["spec"]["resources"]["requests"]["storage"]) for claim in claims)
    for name, quota in named(objects, "ResourceQuota").items():
        hard = quota["spec"]["hard"]
        if hard.keys() != _QUOTAS:
            yield f"ResourceQuota/{name}: limits other things than {', '.join(sorted(_QUOTAS))}"
        for resource, number in needed.items():
            if quantity(hard.get(resource, "0")) < number:
                yield f"ResourceQuota/{name}: {resource} is less than the pods have"


def restarts(objects: Sequence[Object]) -> Faults:
    """A pod that ends before its work is done comes back, and one whose work is done does not."""
    roles = {pod.owner: flags(line) | {"command": line[1]} for pod, line in commands(objects)}
    for pod in pods(objects):
        if "template" not in pod.job:  # an operator makes these pods
            continue
        job, role = pod.job, roles.get(pod.owner, {})
        indexed, joined = job.get("completionMode") == "Indexed", "role" in role
        of_studies = _OF_STUDIES if role.get("command") == "tradeoff" else []
        expected = _OF_JOINED if joined else of_studies
        if "backoffLimitPerIndex" in job:  # an eviction counts as a failure unless a rule says otherwise
            expected = [_DISRUPTED, *expected]
        if not job.get("backoffLimit") and not job.get("backoffLimitPerIndex"):
            yield f"{pod.owner}: gives up at the first failure"
        if job.get("podFailurePolicy", {}).get("rules", []) != expected:
            yield f"{pod.owner}: its podFailurePolicy is not the one of its role"
        if pod.spec["restartPolicy"] != ("Never" if expected else "OnFailure"):
            yield f"{pod.owner}: a podFailurePolicy needs restartPolicy Never, others restart in place"
        if job.get("podReplacementPolicy", "Failed" if expected else "TerminatingOrFailed") != "Failed":
            yield f"{pod.owner}: a second pod may write while the first one saves"
        if "backoffLimitPerIndex" in job and not indexed:
            yield f"{pod.owner}: backoffLimitPerIndex needs Indexed"
        if "successPolicy" in job and not indexed:
            yield f"{pod.owner}: a successPolicy needs Indexed"
        if job.get("completions", 1) > 1 and not indexed:
            yield f"{pod.owner}: several pods need Indexed"
        saves = role.get("command") in ("train", "tradeoff") and not joined
        least = LEAST_GRACE_TO_SAVE if saves else LEAST_GRACE
        if pod.spec.get("terminationGracePeriodSeconds", 30) < least:
            yield f"{pod.owner}: has less than {least} s to end"
        if not pod.spec.get("shareProcessNamespace"):
            yield f"{pod.owner}: psys is process 1, which ignores signals while it starts"
    yield from _ends_with_the_server(objects)


def _ends_with_the_server(objects: Sequence[Object]) -> Faults:
    """Who joined ends with 0 only if the run is complete: the first that does so, or the server, ends all."""
    for name, jobset in named(objects, "JobSet").items():
        spec = jobset["spec"]
        if spec.get("successPolicy") != {"operator": "All", "targetReplicatedJobs": ["server"]}:
            yield f"JobSet/{name}: does not end with its server"
        if spec["network"] != {"enableDNSHostnames": True, "subdomain": "psys"}:
            yield f"JobSet/{name}: its pods have no names, or none before they are ready"
        if not spec.get("failurePolicy", {}).get("maxRestarts"):
            yield f"JobSet/{name}: gives up at the first failure"
        if any(part.get("replicas", 1) != 1 for part in spec["replicatedJobs"]):
            yield f"JobSet/{name}: has several Jobs of a kind"
    for pod, line in commands(objects):
        alone = "role" in flags(line) and not pod.owner.startswith("JobSet/")
        if pod.job.get("successPolicy") != ({"rules": [{"succeededCount": 1}]} if alone else None):
            yield f"{pod.owner}: a pod that comes after the run's end waits for it, or the first one ends others"


def probes(objects: Sequence[Object]) -> Faults:
    """The server is ready when workers can join. Nothing is killed for not answering: its port closes at the end."""
    for pod, line in commands(objects):
        if pod.owner.startswith("RayJob/"):
            continue
        port, ports, probe = flags(line).get("port"), pod.container.get("ports"), pod.container.get("readinessProbe")
        if probe != ({"tcpSocket": {"port": _PORT["name"]}} if port else None):
            yield f"{pod.owner}: a readiness probe of its port belongs to the server, and to it only"
        if ports != ([_PORT] if port else None):
            yield f"{pod.owner}: its ports are not those that it listens at"


def _within(group: str) -> Object:
    """The spec of a policy that lets the pods of a group reach each other, at all ports: RPC and Ray choose theirs."""
    selector = {"matchLabels": {"psys/network": group}}
    return {
        "podSelector": selector,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": selector}]}],
        "egress": [{"to": [{"podSelector": selector}]}],
    }


_OPERATOR = {
    "from": [
        {
            "namespaceSelector": {},
            "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}},
        }
    ],
    "ports": [{"protocol": "TCP", "port": 8265}],
}
_DNS = {
    "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
    "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
}


def network(objects: Sequence[Object]) -> Faults:
    """Nothing reaches a pod but the pods of its run, and it reaches these and DNS only."""
    expected: dict[str, Object] = {
        "psys-default-deny": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
        "psys-dns": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [_DNS]},
        "psys-training": _within("training"),
    }
    if named(objects, "RayJob"):
        ray = _within("ray")
        expected["psys-ray"] = ray | {"ingress": [*ray["ingress"], _OPERATOR]}
    found = {name: policy["spec"] for name, policy in named(objects, "NetworkPolicy").items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            yield f"NetworkPolicy/{name}: allows more or less than psys needs"
    training = {pod.owner for pod, line in commands(objects) if {"join", "listen"} & flags(line).keys()}
    for pod in pods(objects):
        group = "ray" if pod.owner.startswith("RayJob/") else "training" if pod.owner in training else None
        if pod.labels.get("psys/network") != group:
            yield f"{pod.owner}: is not in the group of pods that it needs to reach"


POLICIES: list[Check] = [rights, images, resources, restarts, probes, network]

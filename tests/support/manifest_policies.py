"""What schemas do not see in the manifests: rights, limits, what happens when a pod ends, and who reaches whom.

assert faults(rendered("async")) == []
"""

import re
from collections.abc import Sequence

from tests.support.manifest_checks import NAMES, Check, Faults
from tests.support.manifests import Object, Pod, commands, flags, named, pods

USER = 10001
MENDED_BY_USER, TRIALS_FAILED, STOPPED = 2, 1, {130, 143}  # exit codes of psys; 143: SIGTERM while it was starting
LEAST_GRACE = 20  # seconds to leave a run, or to save one
_NO_RIGHTS = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_UNITS = {"": 1.0, "m": 1e-3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


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
        for name in ("hostNetwork", "hostPID", "hostIPC", "initContainers"):
            if name in spec:
                yield f"{pod.owner}: has {name}"
        if spec.get("enableServiceLinks") is not False:
            yield f"{pod.owner}: has a variable for each service"


def images(objects: Sequence[Object]) -> Faults:
    """Images are named by version or digest; what needs ray has the image with ray."""
    needs_ray = {pod.owner for pod, line in commands(objects) if line[1:2] == ["prepare"]}
    for pod in pods(objects):
        image, ray = pod.container["image"], pod.owner.startswith("RayJob/") or pod.owner in needs_ray
        if not re.search(r"(:\d[\w.-]*|@sha256:[0-9a-f]{64})$", image):
            yield f"{pod.owner}: image {image} has no version"
        if ("/psys-prepare" in image) != ray:
            yield f"{pod.owner}: image {image} is not the one of its command"


def quantity(text: str) -> float:
    """A number of Kubernetes: 500m, 2, 4Gi."""
    found = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi)?", str(text))
    assert found, f"no quantity: {text}"
    return float(found[1]) * _UNITS[found[2] or ""]


def resources(objects: Sequence[Object]) -> Faults:
    """Pods ask for what they use, within their limits, and together within the quota."""
    sums = dict[str, float]()
    for pod in pods(objects):
        requests, limits = (pod.container.get("resources", {}).get(name, {}) for name in ("requests", "limits"))
        for name in ("cpu", "memory", "ephemeral-storage"):
            if name not in requests or name not in limits:
                yield f"{pod.owner}: no request or no limit of {name}"
        for name, value in requests.items():
            if quantity(value) > quantity(limits.get(name, value)):
                yield f"{pod.owner}: requests more {name} than its limit"
            sums[name] = sums.get(name, 0.0) + pod.replicas * quantity(value)
        for volume in pod.spec.get("volumes", []):
            size = volume.get("emptyDir", {}).get("sizeLimit", "0")
            room = limits.get("memory" if volume.get("emptyDir", {}).get("medium") else "ephemeral-storage", "0")
            if quantity(size) > quantity(room):
                yield f"{pod.owner}: volume {volume['name']} is larger than the pod may use"
    for name, quota in named(objects, "ResourceQuota").items():
        for resource in ("cpu", "memory"):
            for kind in ("requests", "limits"):
                if quantity(quota["spec"]["hard"][f"{kind}.{resource}"]) < sums[resource]:
                    yield f"ResourceQuota/{name}: {kind}.{resource} is less than the pods have"


def restarts(objects: Sequence[Object]) -> Faults:
    """A pod that ends before its work is done comes back, and one whose work is done does not."""
    roles = {pod.owner: flags(line) | {"command": line[1]} for pod, line in commands(objects)}
    for pod in pods(objects):
        if "template" not in pod.job:  # an operator makes these pods
            continue
        job, role, never = pod.job, roles.get(pod.owner, {}), pod.spec["restartPolicy"] == "Never"
        indexed, rules = job.get("completionMode") == "Indexed", job.get("podFailurePolicy", {}).get("rules", [])
        if not job.get("backoffLimit") and not job.get("backoffLimitPerIndex"):
            yield f"{pod.owner}: gives up at the first failure"
        if rules and not never:
            yield f"{pod.owner}: a podFailurePolicy needs restartPolicy Never"
        if "backoffLimitPerIndex" in job and not (never and indexed):
            yield f"{pod.owner}: backoffLimitPerIndex needs restartPolicy Never and Indexed"
        if "successPolicy" in job and not indexed:
            yield f"{pod.owner}: a successPolicy needs Indexed"
        if job.get("completions", 1) > 1 and not indexed:
            yield f"{pod.owner}: several pods need Indexed"
        if pod.spec.get("terminationGracePeriodSeconds", 30) < LEAST_GRACE:
            yield f"{pod.owner}: has less than {LEAST_GRACE} s to end"
        if not pod.spec.get("shareProcessNamespace"):
            yield f"{pod.owner}: psys is process 1, which ignores signals while it starts"
        if "role" in role:
            yield from _of_joined(pod, rules)
        elif role["command"] in ("train", "tradeoff"):
            if job.get("podReplacementPolicy") != "Failed":
                yield f"{pod.owner}: a second pod may write while the first one saves"
            if role["command"] == "train" and role.get("resume") != "auto":
                yield f"{pod.owner}: a pod that comes back begins anew"
    yield from _ends_with_the_server(objects)


def _of_joined(pod: Pod, rules: Sequence[Object]) -> Faults:
    actions = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", [])}
    if any(rule.get("onExitCodes", {}).get("containerName", "psys") != pod.container["name"] for rule in rules):
        yield f"{pod.owner}: a rule is of another container"
    if actions.get(MENDED_BY_USER) != "FailJob":
        yield f"{pod.owner}: is started again with what psys refuses"
    if any(actions.get(code) != "Ignore" for code in STOPPED):
        yield f"{pod.owner}: to be told to leave counts as a failure"
    disrupted = [rule for rule in rules if "onPodConditions" in rule]
    if "backoffLimitPerIndex" in pod.job and (not disrupted or rules[0] != disrupted[0]):
        yield f"{pod.owner}: to be preempted counts as a failure"


def _ends_with_the_server(objects: Sequence[Object]) -> Faults:
    """Who joined ends with 0 only if the run is complete: the first that does so, or the server, ends all."""
    for name, jobset in named(objects, "JobSet").items():
        targets = jobset["spec"].get("successPolicy", {}).get("targetReplicatedJobs", [])
        if targets != ["server"]:
            yield f"JobSet/{name}: does not end with its server"
    for pod, line in commands(objects):
        of_a_set, ends = pod.owner.startswith("JobSet/"), pod.job.get("successPolicy")
        if "role" in flags(line) and not of_a_set and ends != {"rules": [{"succeededCount": 1}]}:
            yield f"{pod.owner}: a pod that comes after the run's end waits for it"


def probes(objects: Sequence[Object]) -> Faults:
    """The server is ready when workers can join. Nothing is killed for not answering: its port closes at the end."""
    for pod, line in commands(objects):
        container = pod.container
        if "livenessProbe" in container:
            yield f"{pod.owner}: would be killed while it evaluates the run"
        probe = container.get("readinessProbe")
        if ("port" in flags(line)) != bool(probe):
            yield f"{pod.owner}: a readiness probe belongs to the server, and to it only"
        elif probe:
            ports = {port["name"] for port in container.get("ports", [])}
            if probe.get("tcpSocket", {}).get("port") not in ports:
                yield f"{pod.owner}: its probe asks at no port of its own"


def network(objects: Sequence[Object]) -> Faults:
    """Nothing reaches a pod but the pods of its run, and it reaches these and DNS only."""
    policies = named(objects, "NetworkPolicy")
    denied = [each["spec"] for each in policies.values() if each["spec"]["podSelector"] == {}]
    if not any(set(spec["policyTypes"]) == {"Ingress", "Egress"} and len(spec) == 2 for spec in denied):
        yield "no policy denies all that no other one allows"
    dns = [rule for spec in denied for rule in spec.get("egress", [])]
    ports = {(port["protocol"], port["port"]) for rule in dns for port in rule.get("ports", [])}
    if ports != {("UDP", 53), ("TCP", 53)}:
        yield f"DNS is not allowed, or more is: {sorted(ports)}"
    for name, policy in policies.items():
        for kind, peers in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(kind, []):
                if not rule.get(peers) or any("podSelector" not in peer and kind == "ingress" for peer in rule[peers]):
                    yield f"NetworkPolicy/{name}: {kind} is open to others"
                if any("ipBlock" in peer for peer in rule.get(peers, [])):
                    yield f"NetworkPolicy/{name}: {kind} is open to addresses"
    talking = {pod.owner for pod, line in commands(objects) if {"join", "listen"} & flags(line).keys()}
    for pod in pods(objects):
        label = pod.labels.get("psys/network")
        if label is None:
            if pod.owner in talking:
                yield f"{pod.owner}: no policy lets it reach the others"
            continue
        group = {"podSelector": {"matchLabels": {"psys/network": label}}}
        allowing = [
            policy["spec"] for policy in policies.values() if policy["spec"]["podSelector"] == group["podSelector"]
        ]
        # RPC and Ray choose their ports.
        into = any({"from": [group]} in spec.get("ingress", []) for spec in allowing)
        out = any({"to": [group]} in spec.get("egress", []) for spec in allowing)
        if not (into and out):
            yield f"{pod.owner}: the ports of its group are not all open to its group"


POLICIES: list[Check] = [rights, images, resources, restarts, probes, network]

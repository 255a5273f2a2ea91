"""The manifests of k8s/: schemas, what schemas do not see, and faults that are planted in them."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import kubernetes_validate
import pytest
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from tests.support.manifest_policies import faults
from tests.support.manifests import K8S, OVERLAYS, Object, named, pods, rendered

OLDEST, NEWEST = "1.33", "1.37"  # successPolicy is stable from 1.33 on
OF_OPERATORS = ("JobSet", "RayJob")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_no_fault(overlay: str) -> None:
    assert faults(rendered(overlay)) == []


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_is_valid(version: str) -> None:
    checked = dict[str, Object]()  # by content: most objects are in several overlays
    for overlay in OVERLAYS:
        objects = rendered(overlay)
        for each in objects:
            if each["kind"] not in OF_OPERATORS:
                checked[json.dumps(each)] = each
        for pod in pods(objects):  # of the operators' objects as well
            if "template" in pod.job:
                template = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "any"}, "spec": pod.job}
            else:
                template = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": pod.spec}
            if pod.owner.startswith(OF_OPERATORS):
                checked[json.dumps(template)] = template
    for each in checked.values():
        kubernetes_validate.validate(each, version, strict=True)  # raises for a kind without a schema as well


def test_the_job_set_has_no_field_that_its_model_does_not_have() -> None:
    (jobset,) = named(rendered("jobset"), "JobSet").values()
    for job in jobset["spec"]["replicatedJobs"]:
        job["template"] = {}  # checked as a Job
    model = JobsetV1alpha2JobSet.model_validate(jobset)
    assert model.model_dump(by_alias=True, exclude_none=True, exclude_unset=True) == jobset


def test_the_ray_job_has_no_field_that_kuberay_does_not_have() -> None:
    (job,) = named(rendered("ray"), "RayJob").values()
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert job["apiVersion"] == "ray.io/v1"
    assert set(job["spec"]) <= {
        *("entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit"),
        *("submitterPodTemplate", "rayClusterSpec"),
    }
    assert set(cluster) <= {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    of_groups = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    assert set().union(*groups) <= of_groups


def test_the_readme_explains_every_overlay_and_names_what_exists() -> None:
    readme = (K8S / "README.md").read_text(encoding="utf-8")
    assert [overlay for overlay in OVERLAYS if f"`{overlay}`" not in readme] == []
    assert [path for path in re.findall(r"\bk8s/[\w/.-]*\w", readme) if not (K8S.parent / path).exists()] == []
    exist = {(each["kind"].lower(), each["metadata"]["name"]) for overlay in OVERLAYS for each in rendered(overlay)}
    named_there = set(re.findall(r"\b(job|pod|rayjob)/(psys-\w+)", readme))
    deleted = {("job", name) for names in re.findall(r"delete job ([\w -]+)", readme) for name in names.split()}
    assert (named_there | deleted) - exist == set()


def test_the_overlays_sync_and_async_differ_in_their_settings_only() -> None:
    of_sync, of_async = (named(rendered(overlay), "ConfigMap") for overlay in ("sync", "async"))
    (sync,), (asynchronous,) = (
        [each["data"] for name, each in maps.items() if "run" in name] for maps in (of_sync, of_async)
    )
    assert {name for name in sync if sync[name] != asynchronous[name]} == {"RUN", "MODE"}


# Faults: how an object is changed, and what is said of it.

Change = Callable[[Object], None]
DELETED = object()


def put(path: str, value: Any) -> Change:
    """Set what stands at a path, whose parts have slashes between and are numbers in lists."""

    def change(target: Object) -> None:
        *above, last = path.split("|")
        place: Any = target
        for part in above:
            place = place[int(part) if isinstance(place, list) else part]
        key: Any = int(last) if isinstance(place, list) else last
        if value is DELETED:
            del place[key]
        else:
            place[key] = value

    return change


def word(before: str, after: str) -> Change:
    """Change a word of the command line of a Job's container; "" drops it."""

    def change(target: Object) -> None:
        container = target["spec"]["template"]["spec"]["containers"][0]
        assert before in container["args"]
        container["args"] = [after if each == before else each for each in container["args"] if after or each != before]

    return change


POD = "spec|template|spec"
CONTAINER = f"{POD}|containers|0"
COMPONENT = "app.kubernetes.io/component"
SERVER, WORKERS, SERVICE, RUN = "Job/psys-server", "Job/psys-workers", "Service/psys-server", "ConfigMap/psys-run"
PREPARE, STUDY, RESULTS = "Job/psys-prepare", "Job/psys-tradeoff", "PersistentVolumeClaim/psys-results"
BUDGET, TRAINING = "PodDisruptionBudget/psys-workers", "NetworkPolicy/psys-training"

PLANTED: Sequence[tuple[str, str, Change, str]] = [
    ("async", SERVICE, put(f"spec|selector|{COMPONENT}", "servr"), "selects no pod"),
    ("async", BUDGET, put(f"spec|selector|matchLabels|{COMPONENT}", "workers"), "selects no pod"),
    (
        "async",
        TRAINING,
        put("spec|ingress|0|from|0|podSelector|matchLabels|psys/network", "train"),
        "psys-training: allows more",
    ),
    (
        "prod",
        WORKERS,
        put(f"{POD}|topologySpreadConstraints|0|labelSelector|matchLabels|{COMPONENT}", "server"),
        "spreads other pods than its own",
    ),
    ("async", SERVICE, put("spec|ports|0|targetPort", "rendevous"), "has no port rendevous"),
    ("async", SERVICE, put("spec|ports|0|port", 7001), "does not turn port 7001 into another one"),
    ("async", SERVICE, put("spec|publishNotReadyAddresses", False), "pods that are not ready"),
    ("async", SERVICE, put("spec|clusterIP", DELETED), "not headless"),
    ("async", WORKERS, word("--join=psys-server:7000", "--join=psys-srv:7000"), "joins psys-srv, and no pod has"),
    ("async", WORKERS, word("--join=psys-server:7000", "--join=psys-server:7001"), "joins port 7001"),
    ("async", SERVER, word("--listen=0.0.0.0", "--listen=10.0.0.7"), "listens on 10.0.0.7"),
    ("jobset", "JobSet/psys", put("spec|network|subdomain", "run"), "joins psys-server-0-0.psys, and no pod has"),
    ("async", WORKERS, put(f"{CONTAINER}|volumeMounts|2|name", "store"), "mounts store, which is no volume"),
    ("async", WORKERS, put(f"{CONTAINER}|volumeMounts|1", DELETED), "does not mount token"),
    ("async", SERVER, put(f"{CONTAINER}|volumeMounts|3|mountPath", "/data/results"), "two volumes in one place"),
    ("async", WORKERS, put(f"{POD}|volumes|2|persistentVolumeClaim|claimName", "stores"), "there is no claim stores"),
    ("async", SERVER, put(f"{POD}|volumes|1|configMap|name", "psys-configs"), "there is no config map psys-configs"),
    ("async", SERVER, put(f"{POD}|volumes|2|secret|secretName", "token"), "its secret is not psys-token"),
    ("async", SERVER, put(f"{POD}|volumes|0|emptyDir", {}), "of no allowed kind, or without a limit"),
    ("async", SERVER, put(f"{POD}|volumes|0", {"name": "tmp", "hostPath": {"path": "/tmp"}}), "of no allowed kind"),
    (
        "async",
        "PersistentVolumeClaim/psys-stores",
        put("spec|accessModes", ["ReadWriteOnce"]),
        "which needs ReadWriteMany",
    ),
    ("async", SERVER, word("--store=/data/stores/$(STORE)", "--store=/stores/$(STORE)"), "is on no volume"),
    ("async", SERVER, put(f"{CONTAINER}|volumeMounts|4|readOnly", True), "/data/results/runs cannot be written"),
    ("async", SERVER, word("--token-file=/etc/psys/token/token", "--token-file=/etc/psys/token/t"), "in its secret"),
    ("async", SERVER, put(f"{CONTAINER}|volumeMounts|0|mountPath", "/var/tmp"), "no place for temporary files"),
    ("async", RUN, put("data|CONFIG", "smaple"), "smaple.yaml is not in its config map"),
    ("async", SERVER, put(f"{CONTAINER}|env|0|name", "PSYS_TOKN"), "nothing reads PSYS_TOKN"),
    ("async", RUN, put("data|STORE", DELETED), "STORE has no value"),
    ("async", RUN, put("data|EPOCHS", "3"), "nothing reads EPOCHS"),
    ("async", SERVER, put(f"{CONTAINER}|envFrom|0|configMapRef|name", "psys-run"), "there is no config map psys-run"),
    ("async", SERVER, word("--resume=auto", "--resum=auto"), "unknown flag --resum"),
    ("async", RUN, put("data|MODE", "asynchronous"), "setting 'mode'"),
    ("tradeoff", "ConfigMap/psys-configs", put("data|sample.yaml", "epoch: 3"), "sample.yaml: unknown setting 'epoch'"),
    ("async", RUN, put("data|WORKERS", "5"), "completions, parallelism and --remote-workers differ"),
    ("async", "Job/psys-remote-servers", put("spec|completions", 2), "parallelism and --remote-servers differ"),
    ("async", SERVER, word("--remote-workers=$(WORKERS)", "--remote-workers=2"), "starts workers, or other servers"),
    ("async", BUDGET, put("spec|minAvailable", 4), "not one or two may be evicted"),
    ("async", SERVER, put(f"{POD}|securityContext|runAsUser", 0), "does not run as user 10001"),
    ("async", SERVER, put(f"{POD}|securityContext|seccompProfile", DELETED), "default seccomp profile"),
    ("async", WORKERS, put(f"{CONTAINER}|securityContext|readOnlyRootFilesystem", False), "more than compute"),
    ("async", WORKERS, put(f"{POD}|automountServiceAccountToken", True), "has a token of the cluster"),
    ("async", WORKERS, put(f"{POD}|serviceAccountName", "default"), "no account of its own"),
    ("async", WORKERS, put(f"{POD}|hostNetwork", True), "has hostNetwork"),
    ("async", WORKERS, put(f"{CONTAINER}|image", "x/psys-train:latest"), "has no version"),
    ("prepare", "Job/psys-prepare", put(f"{CONTAINER}|image", "x/psys-train:1.0"), "is not the one of its command"),
    ("async", WORKERS, put(f"{CONTAINER}|resources|requests|memory", "2.5Gi"), "its requests and limits differ"),
    ("async", WORKERS, put(f"{CONTAINER}|resources|limits|cpu", DELETED), "no request or no limit of cpu"),
    ("async", WORKERS, put(f"{POD}|volumes|0|emptyDir|sizeLimit", "5Gi"), "larger than the pod may use"),
    ("prod", "ResourceQuota/psys", put("spec|hard|limits.memory", "32Gi"), "limits.memory is less than the pods have"),
    ("async", WORKERS, put(f"{POD}|restartPolicy", "OnFailure"), "a podFailurePolicy needs restartPolicy Never"),
    ("async", WORKERS, put("spec|completionMode", "NonIndexed"), "a successPolicy needs Indexed"),
    ("spot", WORKERS, put("spec|completionMode", "NonIndexed"), "backoffLimitPerIndex needs Indexed"),
    ("async", WORKERS, put("spec|successPolicy", DELETED), "comes after the run's end waits for it"),
    ("async", "Job/psys-remote-servers", put("spec|successPolicy", DELETED), "remote-servers: a pod that comes after"),
    ("async", WORKERS, put("spec|podFailurePolicy|rules|0", DELETED), "not the one of its role"),
    ("async", WORKERS, put("spec|podFailurePolicy|rules|1", DELETED), "not the one of its role"),
    (
        "async",
        WORKERS,
        put("spec|podFailurePolicy|rules|1|onExitCodes|containerName", "main"),
        "not the one of its role",
    ),
    ("spot", WORKERS, put("spec|podFailurePolicy|rules|0", DELETED), "not the one of its role"),
    ("async", SERVER, put("spec|backoffLimit", 0), "gives up at the first failure"),
    ("async", SERVER, put("spec|podReplacementPolicy", DELETED), "may write while the first one saves"),
    ("async", SERVER, word("--resume=auto", ""), "--resume is not auto"),
    ("async", SERVER, put(f"{POD}|terminationGracePeriodSeconds", 5), "has less than 60 s to end"),
    ("async", SERVER, put(f"{POD}|shareProcessNamespace", DELETED), "psys is process 1"),
    ("jobset", "JobSet/psys", put("spec|successPolicy|targetReplicatedJobs", ["workers"]), "not end with its server"),
    (
        "async",
        SERVER,
        put(f"{CONTAINER}|readinessProbe|tcpSocket|port", "rpc"),
        "a readiness probe of its port belongs to the server",
    ),
    (
        "async",
        SERVER,
        put(f"{CONTAINER}|readinessProbe", DELETED),
        "a readiness probe of its port belongs to the server",
    ),
    ("async", SERVER, put(f"{CONTAINER}|livenessProbe", {"tcpSocket": {"port": 7000}}), "has livenessProbe"),
    (
        "async",
        "NetworkPolicy/psys-default-deny",
        put("spec|policyTypes", ["Ingress"]),
        "psys-default-deny: allows more",
    ),
    ("async", "NetworkPolicy/psys-dns", put("spec|egress|0|ports|1", DELETED), "psys-dns: allows more or less"),
    ("async", TRAINING, put("spec|ingress", [{}]), "psys-training: allows more or less"),
    ("async", TRAINING, put("spec|ingress|0|ports", [{"port": 7000}]), "psys-training: allows more or less"),
    ("async", TRAINING, put("spec|egress", []), "psys-training: allows more or less"),
    (
        "async",
        WORKERS,
        put("spec|template|metadata|labels|psys/network", DELETED),
        "not in the group of pods that it needs",
    ),
    ("async", TRAINING, put("spec|policyTypes", ["Ingress"]), "psys-training: allows more or less"),
    (
        "async",
        TRAINING,
        put("spec|ingress|0|from", [{"namespaceSelector": {}, "podSelector": {}}]),
        "psys-training: allows more or less",
    ),
    ("async", TRAINING, put("spec|egress|0|to|0", {"podSelector": {}}), "psys-training: allows more or less"),
    ("ray", "NetworkPolicy/psys-ray", put("spec|ingress|1", DELETED), "psys-ray: allows more or less"),
    ("async", SERVER, word("--token-file=/etc/psys/token/token", ""), "--token-file is not /etc/psys"),
    ("async", SERVER, word("--runs=/data/results/runs", ""), "--runs is not /data/results/runs"),
    ("async", SERVER, word("--join-timeout=7200", "--join-timeout=5"), "--join-timeout is not 7200"),
    ("async", WORKERS, word("--patience=7200", ""), "--patience is not 7200"),
    ("async", WORKERS, word("--store=/data/stores/$(STORE)", "--store=/data/stores/other"), "have not the same store"),
    ("async", WORKERS, word("--role=worker", "--role=server"), "0 Jobs have the role worker"),
    ("prepare", PREPARE, word("--source=sample", "--source=sampel"), "there is no source sampel"),
    ("prepare", PREPARE, word("--name=sample", "--name=smple"), "--name is not sample"),
    ("prepare", PREPARE, put("spec|podReplacementPolicy", DELETED), "may write while the first one saves"),
    ("tradeoff", STUDY, word("--studies=/data/results/studies", ""), "--studies is not /data/results/studies"),
    ("tradeoff", STUDY, put("spec|podFailurePolicy|rules|1", DELETED), "not the one of its role"),
    ("ray", "RayJob/psys-prepare", put("spec|entrypoint", "psys prepare --source=sample"), "--ray-address is not"),
    ("async", WORKERS, put("spec|podFailurePolicy|rules|0|onExitCodes|operator", "NotIn"), "not the one of its role"),
    ("spot", WORKERS, put("spec|podFailurePolicy|rules|0|action", "Count"), "not the one of its role"),
    ("async", WORKERS, put("spec|podReplacementPolicy", "TerminatingOrFailed"), "may write while the first one saves"),
    ("async", SERVER, put(f"{POD}|restartPolicy", "Always"), "others restart in place"),
    ("async", SERVER, put("metadata|name", "psys-srv"), "not the one of its component"),
    ("async", SERVER, put("spec|suspend", True), "has suspend"),
    ("async", SERVER, put("spec|activeDeadlineSeconds", 600), "has activeDeadlineSeconds"),
    ("async", SERVER, put(f"{POD}|activeDeadlineSeconds", 600), "has activeDeadlineSeconds"),
    ("async", SERVER, put(f"{CONTAINER}|lifecycle", {}), "has lifecycle"),
    ("async", SERVER, put(f"{CONTAINER}|readinessProbe|tcpSocket|host", "127.0.0.1"), "a readiness probe of its port"),
    ("async", SERVER, put(f"{CONTAINER}|ports|0|protocol", "UDP"), "not those that it listens at"),
    ("async", SERVICE, put("spec|ports|0|protocol", "UDP"), "is not of TCP"),
    ("async", SERVER, put(f"{CONTAINER}|env|0|value", "/root"), "HOME is not /tmp"),
    ("async", RUN, put("data|WORKERS", 4), "has a value that is no text"),
    ("async", WORKERS, put(f"{CONTAINER}|volumeMounts|0|subPath", "t"), "mounts a part of"),
    ("async", WORKERS, put(f"{POD}|volumes|1|secret|items", [{"key": "t", "path": "t"}]), "its secret is not"),
    ("async", RESULTS, put("spec|storageClassName", "fast"), "what not every cluster has"),
    ("async", RESULTS, put("spec|accessModes", ["ReadOnlyMany"]), "cannot be written"),
    ("async", SERVER, put(f"{CONTAINER}|image", "psys-train:0.1.0"), "is not one of psys"),
    ("async", SERVER, put(f"{CONTAINER}|image", "x/psys-train:0.2.0"), "images of several versions"),
    ("async", SERVER, put(f"{CONTAINER}|imagePullPolicy", "Never"), "pulled always, or never"),
    ("gpu", WORKERS, put(f"{CONTAINER}|image", "x/psys-train:0.1.0"), "the image for GPUs belong together"),
    ("gpu", WORKERS, put(f"{CONTAINER}|resources|limits|nvidia.com/gpu", "2"), "its requests and limits differ"),
    ("gpu", WORKERS, put(f"{POD}|tolerations|0|operator", "Exsts"), "a toleration has no operator"),
    ("async", SERVER, put(f"{CONTAINER}|resources|requests|cpu", "1x"), "cpu is no quantity: 1x"),
    ("async", SERVER, put(f"{CONTAINER}|resources|requests|memory", "64Mi"), "less than a CPU and 2Gi"),
    ("prod", "ResourceQuota/psys", put("spec|hard|pods", "10"), "pods is less than the pods have"),
    ("prod", "ResourceQuota/psys", put("spec|hard|count/jobs.batch", "1"), "limits other things"),
    ("async", BUDGET, put("spec|minAvailable", "75%"), "not one or two may be evicted"),
    ("async", BUDGET, put("spec|selector|matchLabels", {}), "keeps others than workers"),
    ("jobset", "JobSet/psys", put("spec|replicatedJobs|2|replicas", 2), "several Jobs of a kind"),
    ("jobset", "JobSet/psys", put("spec|network|enableDNSHostnames", False), "its pods have no names"),
    ("jobset", "JobSet/psys", put("spec|failurePolicy|maxRestarts", 0), "psys: gives up at the first failure"),
    ("async", "Namespace/psys", put("metadata|labels", {}), "pods are not restricted"),
    ("async", BUDGET, put("metadata|namespace", "default"), "not in namespace psys"),
]


@pytest.mark.parametrize(("overlay", "where", "change", "fault"), PLANTED, ids=[each[3] for each in PLANTED])
def test_a_planted_fault_is_found(overlay: str, where: str, change: Change, fault: str) -> None:
    objects = rendered(overlay)
    kind, _, name = where.partition("/")
    # kustomize adds a hash to the name of a config map.
    (target,) = (each for own, each in named(objects, kind).items() if own == name or own.startswith(f"{name}-"))
    change(target)
    found = faults(objects)
    assert any(fault in each for each in found), found

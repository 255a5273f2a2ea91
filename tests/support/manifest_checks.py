"""What schemas do not see in the manifests: names that match nothing, and what psys would refuse.

Each check yields a line for each fault that it finds in the objects of an overlay.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from psys.config import parse
from psys.errors import PsysError
from psys.segment.prepare import PrepareConfig
from psys.tradeoff.config import StudyCommand
from psys.training import read_settings
from tests.support.manifests import Object, Pod, commands, flags, named, pods, settings

CONFIGS = "/etc/psys/configs"
SECRET, TOKEN = "psys-token", "token"  # which k8s/README.md has the user create
READ_BY_LIBRARIES = {"HOME"}
_PATHS = ("config", "store", "stores", "source", "runs", "studies", "token-file", "base")
_WRITTEN = ("stores", "runs", "studies")

Faults = Iterator[str]
Check = Callable[[Sequence[Object]], Faults]


def selected(objects: Sequence[Object], selector: Object) -> list[Pod]:
    """The pods with all labels of a selector: every pod, if it has none."""
    wanted = selector.get("matchLabels", {})
    return [pod for pod in pods(objects) if wanted.items() <= pod.labels.items()]


def namespaces(objects: Sequence[Object]) -> Faults:
    """Everything is in the one namespace, which admits restricted pods only."""
    ((name, namespace),) = named(objects, "Namespace").items()
    if namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
        yield f"namespace {name}: pods are not restricted"
    for each in objects:
        if each["kind"] != "Namespace" and each["metadata"].get("namespace") != name:
            yield f"{each['kind']}/{each['metadata']['name']}: not in namespace {name}"


def selectors(objects: Sequence[Object]) -> Faults:
    """Every selector selects a pod."""
    for each in objects:
        spec, where = each.get("spec", {}), f"{each['kind']}/{each['metadata']['name']}"
        found: list[Object] = []
        match each["kind"]:
            case "Service":
                found = [{"matchLabels": spec["selector"]}]
            case "PodDisruptionBudget":
                found = [spec["selector"]]
        for selector in found:
            if not selected(objects, selector):
                yield f"{where}: selects no pod ({selector})"
    for pod in pods(objects):
        for constraint in pod.spec.get("topologySpreadConstraints", []):
            if pod not in selected(objects, constraint["labelSelector"]):
                yield f"{pod.owner}: spreads other pods than its own"


def services(objects: Sequence[Object]) -> Faults:
    """A service's ports are ports of its pods, under names that exist before the pods are ready."""
    for name, service in named(objects, "Service").items():
        spec = service["spec"]
        if spec.get("clusterIP") != "None" or not spec.get("publishNotReadyAddresses"):
            yield f"Service/{name}: not headless, or without the addresses of pods that are not ready"
        for pod in selected(objects, {"matchLabels": spec["selector"]}):
            open_ports = {
                key: port for port in pod.container.get("ports", []) for key in (port["name"], port["containerPort"])
            }
            for port in spec["ports"]:
                if port.get("protocol", "TCP") != "TCP":
                    yield f"Service/{name}: port {port['port']} is not of TCP"
                target = open_ports.get(port.get("targetPort", port["port"]))
                if target is None:
                    yield f"Service/{name}: {pod.owner} has no port {port.get('targetPort', port['port'])}"
                elif target["containerPort"] != port["port"]:
                    yield f"Service/{name}: a headless service does not turn port {port['port']} into another one"


def addresses(objects: Sequence[Object]) -> Faults:
    """Whoever joins names the server and the port that it listens at."""
    hosts = dict[str, list[Pod]]()
    for name, service in named(objects, "Service").items():
        hosts[name] = selected(objects, {"matchLabels": service["spec"]["selector"]})
    hosts |= {pod.host: [pod] for pod in pods(objects) if pod.host}
    listening = {pod.owner: flags(line) for pod, line in commands(objects) if "port" in flags(line)}
    for pod, line in commands(objects):
        if joined := flags(line).get("join"):
            host, _, port = joined.rpartition(":")
            servers = [listening.get(server.owner, {}) for server in hosts.get(host, [])]
            if not servers:
                yield f"{pod.owner}: joins {host}, and no pod has that name"
            elif any(server.get("port") != port for server in servers):
                yield f"{pod.owner}: joins port {port}, where its server does not listen"
    for owner, own in listening.items():
        if own.get("listen") != "0.0.0.0":
            yield f"{owner}: listens on {own.get('listen')}, and its pod's address changes with the pod"


def volumes(objects: Sequence[Object]) -> Faults:
    """Mounts and volumes belong together, and what volumes name exists."""
    exist = {kind: named(objects, kind) for kind in ("ConfigMap", "PersistentVolumeClaim")}
    users = Counter[str]()
    for pod in pods(objects):
        declared = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        mounts = pod.container.get("volumeMounts", [])
        for mount in mounts:
            if mount["name"] not in declared:
                yield f"{pod.owner}: mounts {mount['name']}, which is no volume"
            if not mount.keys() <= {"name", "mountPath", "readOnly"}:
                yield f"{pod.owner}: mounts a part of {mount['name']}"
        if unused := declared.keys() - {mount["name"] for mount in mounts}:
            yield f"{pod.owner}: does not mount {', '.join(sorted(unused))}"
        if len({mount["mountPath"] for mount in mounts}) < len(mounts):
            yield f"{pod.owner}: mounts two volumes in one place"
        for name, volume in declared.items():
            match volume:
                case {"configMap": {"name": source}} if source not in exist["ConfigMap"]:
                    yield f"{pod.owner}: there is no config map {source}"
                case {"secret": secret} if secret != {"secretName": SECRET, "defaultMode": 0o440}:
                    yield f"{pod.owner}: its secret is not {SECRET}, whole and readable by its group"
                case {"persistentVolumeClaim": {"claimName": source}}:
                    users[source] += pod.replicas
                    if source not in exist["PersistentVolumeClaim"]:
                        yield f"{pod.owner}: there is no claim {source}"
                case {"emptyDir": {"sizeLimit": _}} | {"configMap": _} | {"secret": _}:
                    pass
                case _:
                    yield f"{pod.owner}: volume {name} is of no allowed kind, or without a limit"
    for name, claim in exist["PersistentVolumeClaim"].items():
        if not claim["spec"].keys() <= {"accessModes", "resources"}:
            yield f"claim {name}: asks for what not every cluster has"
        if not {"ReadWriteOnce", "ReadWriteMany"} & set(claim["spec"]["accessModes"]):
            yield f"claim {name}: cannot be written, or by one pod only"
        if users[name] > 1 and claim["spec"]["accessModes"] != ["ReadWriteMany"]:
            yield f"claim {name}: {users[name]} pods mount it, which needs ReadWriteMany"


def paths(objects: Sequence[Object]) -> Faults:
    """The paths of a command are mounted, and what it writes to is writable."""
    for pod, line in commands(objects):
        kinds = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        mounts = {mount["mountPath"]: mount for mount in pod.container.get("volumeMounts", [])}
        if "/tmp" not in mounts or "emptyDir" not in kinds.get(mounts["/tmp"]["name"], {}):
            yield f"{pod.owner}: has no place for temporary files"
        for name, value in flags(line).items():
            path = value.removeprefix("store=")
            if name not in _PATHS or not path.startswith("/"):
                continue
            place = next((place for place in mounts if path == place or path.startswith(f"{place}/")), None)
            if place is None:
                yield f"{pod.owner}: --{name} {path} is on no volume"
                continue
            mount, volume = mounts[place], kinds.get(mounts[place]["name"], {})
            read_only = mount.get("readOnly") or volume.get("persistentVolumeClaim", {}).get("readOnly")
            if name in _WRITTEN and read_only:
                yield f"{pod.owner}: --{name} {path} cannot be written"
            if "configMap" in volume:
                content = named(objects, "ConfigMap").get(volume["configMap"]["name"], {}).get("data", {})
                if Path(path).name not in content:
                    yield f"{pod.owner}: --{name} {path} is not in its config map"
            if "secret" in volume and Path(path).name != TOKEN:
                yield f"{pod.owner}: --{name} {path} is not in its secret"


def variables(objects: Sequence[Object]) -> Faults:
    """Every variable of an environment is used by the command, or read by psys."""
    for pod in pods(objects):
        container = pod.container
        for source in container.get("envFrom", []):
            if source["configMapRef"]["name"] not in named(objects, "ConfigMap"):
                yield f"{pod.owner}: there is no config map {source['configMapRef']['name']}"
        for variable in container.get("env", []):
            if variable["name"] not in READ_BY_LIBRARIES | _read_by_psys():
                yield f"{pod.owner}: nothing reads {variable['name']}"
    for name, config_map in named(objects, "ConfigMap").items():
        if "immutable" in config_map or not all(isinstance(value, str) for value in config_map["data"].values()):
            yield f"ConfigMap/{name}: cannot be changed, or has a value that is no text"
    for pod, line in commands(objects):
        if settings(objects, pod.container).get("HOME") != "/tmp":
            yield f"{pod.owner}: HOME is not /tmp"
        for word in line:
            for name in re.findall(r"\$\((\w+)\)", word):
                yield f"{pod.owner}: {name} has no value"
    used = {name for pod in pods(objects) for name in re.findall(r"\$\((\w+)\)", str(pod.container.get("args", [])))}
    for pod in pods(objects):
        if unused := settings(objects, {"envFrom": pod.container.get("envFrom", [])}).keys() - used:
            yield f"{pod.owner}: nothing reads {', '.join(sorted(unused))}"


@cache
def _read_by_psys() -> set[str]:
    code = Path(__file__).parents[2] / "psys"
    text = "\n".join(path.read_text(encoding="utf-8") for path in code.rglob("*.py"))
    return set(re.findall(r"""environ(?:\.\w+\(|\[)"(\w+)\"""", text)) | set(re.findall(r'"(RAY_\w+)"', text))


def command_lines(objects: Sequence[Object]) -> Faults:
    """psys takes every flag, and every key of the config files."""
    configs = {
        name: text
        for config_map in named(objects, "ConfigMap").values()
        for name, text in config_map["data"].items()
        if name.endswith(".yaml")
    }
    for name, text in configs.items():
        command = "tradeoff" if re.search("^arms:", text, re.MULTILINE) else "train"
        if refusal := _refusal((command, f"--config={CONFIGS}/{name}"), ((name, text),)):
            yield f"{name}: {refusal}"
    for pod, (program, *words) in commands(objects):
        own = flags(words).get("config", "").rpartition("/")[2]
        files = ((own, configs[own]),) if own in configs else ()
        if refusal := f"{program} is not psys" if program != "psys" else _refusal(tuple(words), files):
            yield f"{pod.owner}: {refusal}"


@cache
def _refusal(words: tuple[str, ...], files: tuple[tuple[str, str], ...]) -> str:
    """Why psys does not take a command, whose config files have these names and contents below CONFIGS; "": it does."""
    parsers: dict[str, Callable[[Sequence[str]], object]] = {
        "train": read_settings,
        "tradeoff": lambda arguments: parse(StudyCommand, arguments, "psys tradeoff"),
        "prepare": lambda arguments: parse(PrepareConfig, arguments, "psys prepare"),
    }
    command, *arguments = words
    if command not in parsers:
        return f"psys has no command {command}"
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files:
            Path(folder, name).write_text(text, encoding="utf-8")
        try:
            parsers[command]([argument.replace(CONFIGS, folder) for argument in arguments])
        except PsysError as error:
            return str(error)
    return ""


def numbers(objects: Sequence[Object]) -> Faults:
    """The settings of a run say how many pods there are. Jobs have the names that k8s/README.md has."""
    for pod in pods(objects):
        kind, _, name = pod.owner.partition("/")
        if kind == "Job" and name.removesuffix("s") != f"psys-{pod.labels.get('app.kubernetes.io/component')}":
            yield f"{pod.owner}: its name is not the one of its component"
    found = {pod.owner: (pod, flags(line)) for pod, line in commands(objects)}
    server = next((own for _, own in found.values() if "workers" in own), None)
    if server is None:
        return
    for role, setting in (("worker", "remote-workers"), ("server", "remote-servers")):
        joined = [pod for pod, own in found.values() if own.get("role") == role]
        if len(joined) != 1:
            yield f"{len(joined)} Jobs have the role {role}"
        for pod in joined:
            if {str(pod.job.get(number)) for number in ("completions", "parallelism")} != {server[setting]}:
                yield f"{pod.owner}: completions, parallelism and --{setting} differ"
    own_server = {f"{number + 1}": f"{number}" for number in range(64)}
    if server["workers"] != server["remote-workers"] or own_server.get(server["servers"]) != server["remote-servers"]:
        yield "the server starts workers, or other servers, in its own pod"
    for name, budget in named(objects, "PodDisruptionBudget").items():
        guarded = selected(objects, budget["spec"]["selector"])
        if any(found.get(pod.owner, (pod, {}))[1].get("role") != "worker" for pod in guarded):
            yield f"PodDisruptionBudget/{name}: keeps others than workers"
        kept = sum(pod.replicas for pod in guarded)
        if budget["spec"].get("minAvailable") not in (kept - 1, kept - 2):
            yield f"PodDisruptionBudget/{name}: of {kept} pods not one or two may be evicted"


def needed_flags(objects: Sequence[Object]) -> Faults:
    """Every command has the flags without which it would work alone, elsewhere, or not wait for the others."""
    stores = dict[str, str]()
    for pod, (_, command, *words) in commands(objects):
        own = flags(words)
        needed = dict[str, str]()
        match command, own.get("role"):
            case "train", role:
                needed = {"token-file": f"/etc/psys/token/{TOKEN}", "patience": "7200"}
                if role is None:
                    needed |= {"resume": "auto", "runs": "/data/results/runs", "join-timeout": "7200"}
                if role != "server":
                    stores[pod.owner] = own.get("store", "")
            case "tradeoff", _:
                needed = {"studies": "/data/results/studies"}
            case "prepare", _:
                source = own.get("source", "")
                needed = {"stores": "/data/stores", "name": Path(source).name}
                if source != "sample" and not source.startswith("/data/stores/"):
                    yield f"{pod.owner}: there is no source {source}"
                if pod.owner.startswith("RayJob/"):
                    needed["ray-address"] = "127.0.0.1:6379"
        for name, value in needed.items():
            if own.get(name) != value:
                yield f"{pod.owner}: --{name} is not {value}"
    if len(set(stores.values())) > 1 or "" in stores.values():
        yield f"the server and the workers have not the same store: {stores}"


NAMES: list[Check] = [
    *(namespaces, selectors, services, addresses, volumes, paths, variables, command_lines, needed_flags, numbers),
]

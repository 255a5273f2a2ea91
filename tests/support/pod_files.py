"""What a pod's manifest gives its containers: variables, arguments and volumes, as the kubelet makes them."""

import base64
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.containers import Mount
from tests.support.hosts import Host, entering

Manifest = Mapping[str, Any]

_REFERENCE = re.compile(r"\$\$|\$\(([^)]+)\)")


class Objects:
    """The manifests of one namespace, by kind and name."""

    def __init__(self) -> None:
        self._manifests: dict[tuple[str, str], Manifest] = {}

    def add(self, manifest: Manifest) -> None:
        """Add a manifest, or replace the one of that kind and name."""
        self._manifests[manifest["kind"], manifest["metadata"]["name"]] = manifest

    def all(self, kind: str) -> list[Manifest]:
        return [manifest for (its_kind, _), manifest in self._manifests.items() if its_kind == kind]

    def one(self, kind: str, name: str) -> Manifest:
        assert (kind, name) in self._manifests, f"there is no {kind} {name}"
        return self._manifests[kind, name]

    def data(self, kind: str, name: str) -> dict[str, str]:
        """The data of a ConfigMap or Secret."""
        manifest = self.one(kind, name)
        data: dict[str, str] = manifest.get("data", {})
        if kind == "Secret":
            data = {key: base64.b64decode(value).decode() for key, value in data.items()}
            data |= manifest.get("stringData", {})
        return data


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """`text` with $(NAME) replaced. A name that no variable has stays as it is, and $$ is an escaped $."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return _REFERENCE.sub(value, text)


def environment_of(container: Manifest, objects: Objects, fields: Mapping[str, str]) -> dict[str, str]:
    """The variables of a container; `fields` are the values of the pod's fields, by path."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        ((kind, reference),) = source.items()
        variables |= objects.data({"configMapRef": "ConfigMap", "secretRef": "Secret"}[kind], reference["name"])
    for variable in container.get("env", []):
        if "value" in variable:
            value = expanded(variable["value"], variables)
        else:
            ((kind, reference),) = variable["valueFrom"].items()
            match kind:
                case "fieldRef":
                    value = fields[reference["fieldPath"]]
                case "configMapKeyRef":
                    value = objects.data("ConfigMap", reference["name"])[reference["key"]]
                case "secretKeyRef":
                    value = objects.data("Secret", reference["name"])[reference["key"]]
                case _:
                    raise NotImplementedError(f"valueFrom {kind}")
        variables[variable["name"]] = value
    return variables


def mounts_of(
    container: Manifest, spec: Manifest, objects: Objects, claims: Path, folder: Path, host: Host
) -> list[Mount]:
    """The volumes of a container. Claims lie below `claims`, and volumes that end with the pod below `folder`."""
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    group = spec["securityContext"]["fsGroup"]
    mounts = []
    for mount in container.get("volumeMounts", []):
        volume = volumes[mount["name"]]
        source, read_only = _volume(volume, objects, claims, folder / volume["name"], group, host)
        read_only = read_only or mount.get("readOnly", False)
        mounts.append(Mount(source, mount["mountPath"], read_only))
    return mounts


def _volume(
    volume: Manifest, objects: Objects, claims: Path, folder: Path, group: int, host: Host
) -> tuple[Path, bool]:
    """The folder of a volume, made if it is not there, and whether pods may only read it."""
    match volume:
        case {"persistentVolumeClaim": claim}:
            objects.one("PersistentVolumeClaim", claim["claimName"])
            return _writable(claims / claim["claimName"], group), claim.get("readOnly", False)
        case {"emptyDir": settings}:
            if not folder.exists():
                _writable(folder, group)
                if settings.get("medium") == "Memory":
                    _mount_memory(folder, settings.get("sizeLimit", "100%"), host)
            return folder, False
        case {"configMap": settings}:
            return _files(folder, objects.data("ConfigMap", settings["name"]), settings, group), True
        case {"secret": settings}:
            return _files(folder, objects.data("Secret", settings["secretName"]), settings, group), True
    raise NotImplementedError(f"volume {volume}")


def _writable(folder: Path, group: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder, 0, group)
    os.chmod(folder, 0o2775)
    return folder


def _mount_memory(folder: Path, size: str, host: Host) -> None:
    """Mount a file system in memory that all containers of the pod see, and that ends with the pod."""
    options = f"size={size.removesuffix('i')},mode=777"
    mount = ("mount", "-t", "tmpfs", "-o", options, "memory", str(folder))
    subprocess.run([*entering(host.init), *mount], check=True)


def _files(folder: Path, data: Mapping[str, str], settings: Manifest, group: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in data.items():
        file = folder / name
        file.write_text(text, encoding="utf-8")
        os.chown(file, 0, group)
        file.chmod(settings.get("defaultMode", 0o644) | 0o440)
    return folder

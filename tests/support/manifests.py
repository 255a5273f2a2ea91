"""The Kubernetes manifests of k8s/, as kustomize renders them."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = sorted(path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml"))

Object = dict[str, Any]


def rendered(overlay: str) -> list[Object]:
    """All objects of an overlay, a new copy at each call. Skips the test where nothing can render them."""
    return list(yaml.safe_load_all(_rendered(K8S / "overlays" / overlay)))


@cache
def _rendered(folder: Path) -> str:
    for program, command in (("kubectl", "kustomize"), ("kustomize", "build")):
        if shutil.which(program):
            return subprocess.run([program, command, folder], check=True, capture_output=True, text=True).stdout
    pytest.skip("kubectl or kustomize renders the manifests, and neither is installed")

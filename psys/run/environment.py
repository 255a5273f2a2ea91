"""What the result of a run depends on besides its settings."""

import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from psys.cores import available_cores

_PACKAGES = ("torch", "numpy", "opencv-python-headless", "ray", "onnx", "onnxruntime", "pydantic", "safetensors")


def environment() -> dict[str, Any]:
    """Command, versions, commit and machine, as JSON values."""
    return {
        "command": _command(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": available_cores(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _command() -> list[str]:
    """The command as one types it: `sys.argv` has the absolute path of an installed program, and of `-m psys`."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return ["python", "-m", program.parent.name, *sys.argv[1:]]
    return [program.name if program.is_absolute() else sys.argv[0], *sys.argv[1:]]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a machine that only trains needs neither Ray nor OpenCV
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()

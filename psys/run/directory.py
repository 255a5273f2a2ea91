"""A run's directory: its resolved settings, environment, events, snapshots and results; enough to repeat it.

config.yaml environment.json events.jsonl faults.yaml logs/ snapshots/ checkpoints/   written while the run trains
best.safetensors last.safetensors model.onnx curves.png result.json   written when it is evaluated
"""

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from psys.compute.flat import FlatModel
from psys.config import read_yaml, validate, write_yaml
from psys.errors import PsysError
from psys.run.checkpoint import Checkpoints, save_tensors
from psys.run.config import RunConfig
from psys.run.faults import read_plan

_PACKAGES = ("torch", "numpy", "opencv-python-headless", "ray", "onnx", "onnxruntime", "pydantic", "safetensors")


class RunDirectory:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events, self.logs, self.snapshots = path / "events.jsonl", path / "logs", path / "snapshots"
        self.config_file, self.token = path / "config.yaml", path / "token"

    @classmethod
    def create(cls, config: RunConfig) -> "RunDirectory":
        """Make the directory of a new run. Raises PsysError if the name is taken or the folder cannot be written."""
        name = config.name or f"{time.strftime('%Y%m%d-%H%M%S')}-{config.mode}"
        run = cls(config.runs / name)
        try:
            run.path.mkdir(parents=True)
            run.snapshots.mkdir()
            run.logs.mkdir()
        except FileExistsError:
            raise PsysError(f"{run.path} holds a run already: choose another --name, or remove it") from None
        except OSError as error:
            raise PsysError(f"cannot make the run directory {run.path}: {error.strerror}") from None
        run.update(config)
        return run

    def update(self, config: RunConfig) -> None:
        """Write the settings that the run has from now on, and what they are used with."""
        if config.faults:
            plan = read_plan(config.faults)
            config = config.model_copy(update={"faults": self.path / "faults.yaml"})
            write_yaml(plan, self.path / "faults.yaml")
        write_yaml(config, self.config_file)
        self.write_json("environment.json", environment())

    def write_token(self, token: str) -> None:
        """Write what whoever joins must know, for nobody else to read."""
        self.token.touch(0o600)
        self.token.write_text(token + "\n", encoding="utf-8")

    def config(self) -> RunConfig:
        """The run's resolved settings. Raises PsysError if this is no run directory."""
        return validate(RunConfig, read_yaml(self.config_file), where=str(self.config_file))

    def checkpoints(self, keep: int) -> Checkpoints:
        """Its checkpoints, of which the last `keep` stay."""
        return Checkpoints(self.path / "checkpoints", keep)

    def saved(self) -> int:
        """Version of the newest snapshot, 0 if there is none."""
        return max((int(path.stem) for path in self.snapshots.glob("*.safetensors")), default=0)

    def set_back(self, version: int) -> None:
        """Remove the snapshots of what came after `version`: the run goes on from there."""
        for path in self.snapshots.glob("*.safetensors"):
            if int(path.stem) > version:
                path.unlink()

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        path = self.path / name
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        aside.replace(path)

    def snapshot_path(self, version: int) -> Path:
        return self.snapshots / f"{version:08d}.safetensors"


def save_snapshot(parameters: Tensor, statistics: Tensor, path: Path) -> None:
    """Write a version's flat vectors (see FlatModel), whole or not at all. Raises OSError."""
    _save({"parameters": parameters, "statistics": statistics}, path)


def load_snapshot(model: FlatModel, path: Path) -> None:
    """Read what `save_snapshot` wrote into `model`. Raises PsysError for a missing, damaged or unfitting file."""
    try:
        tensors = load_file(path)
        model.load(tensors["parameters"], tensors["statistics"])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PsysError(f"cannot load {path}: {reason}") from None


def save_module(module: nn.Module, path: Path) -> None:
    """Write a module's parameters and buffers by name, whole or not at all."""
    tensors = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    # Cloned, for the tensors are views into one vector and safetensors writes no shared storage, nor channels_last.
    _save({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, path)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    aside = path.with_suffix(".tmp")
    try:
        save_tensors(tensors, aside)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def environment() -> dict[str, Any]:
    """What a result depends on besides its settings: command, versions, commit, machine."""
    return {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
    }


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

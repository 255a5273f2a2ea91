"""A run's directory: its resolved settings, environment, events, snapshots and results; enough to repeat the run.

config.yaml environment.json events.jsonl faults.yaml logs/ snapshots/ checkpoints/   written while the run trains
best.safetensors last.safetensors model.json model.onnx curves.png confusion.png result.json   once it is evaluated
"""

import json
import time
from pathlib import Path
from typing import Any

from psys.config import read_yaml, validate, write_yaml
from psys.errors import PsysError
from psys.run.checkpoint import Checkpoints
from psys.run.config import RunConfig
from psys.run.environment import environment
from psys.run.faults import read_plan


class RunDirectory:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events, self.logs, self.snapshots = path / "events.jsonl", path / "logs", path / "snapshots"
        self.config_file, self.token = path / "config.yaml", path / "token"
        self.result_file = path / "result.json"

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
            raise PsysError(f"{run.path} holds a run already: choose another --name, or remove the directory") from None
        except OSError as error:
            raise PsysError(f"cannot make the run directory {run.path}: {error.strerror}") from None
        run.update(config)
        return run

    def update(self, config: RunConfig) -> None:
        """Write the settings that the run has from now on, its fault plan, and the environment."""
        if config.faults:
            plan = read_plan(config.faults)
            config = config.model_copy(update={"faults": self.path / "faults.yaml"})
            write_yaml(plan, self.path / "faults.yaml")
        write_yaml(config, self.config_file)
        _write_json(environment(), self.path / "environment.json")

    def write_token(self, token: str) -> None:
        """Write the token that every joining process must have; only the user of this process can read the file."""
        self.token.touch(0o600)
        self.token.write_text(token + "\n", encoding="utf-8")

    def config(self) -> RunConfig:
        """The run's resolved settings. Raises PsysError if this is no run directory."""
        return validate(RunConfig, read_yaml(self.config_file), where=str(self.config_file))

    @property
    def complete(self) -> bool:
        """The run was evaluated: nothing is left to train, and `result` has its figures."""
        return self.result_file.exists()

    def result(self) -> dict[str, Any]:
        """The content of result.json (see psys.run.results). Raises PsysError if the run was not evaluated."""
        try:
            content = json.loads(self.result_file.read_bytes())
        except FileNotFoundError:
            raise PsysError(f"{self.path} was not evaluated yet: run `psys evaluate {self.path}`") from None
        except OSError as error:
            raise PsysError(f"cannot read {self.result_file}: {error.strerror}") from None
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise PsysError(f"{self.result_file} is not a JSON object: the file was changed after it was written")
        return content

    def write_result(self, content: dict[str, Any]) -> None:
        """Write result.json, whole or not at all."""
        _write_json(content, self.result_file)

    def write_model(self, description: dict[str, Any]) -> None:
        """Write model.json (see psys.run.description), whole or not at all."""
        _write_json(description, self.path / "model.json")

    def checkpoints(self, keep: int) -> Checkpoints:
        """The run's checkpoints, of which the latest `keep` stay."""
        return Checkpoints(self.path / "checkpoints", keep)

    def snapshot_path(self, version: int) -> Path:
        """Where the snapshot of a version lies."""
        return self.snapshots / f"{version:08d}.safetensors"

    def newest_snapshot(self) -> int:
        """Version of the newest snapshot, 0 if there is none."""
        return max((int(path.stem) for path in self.snapshots.glob("*.safetensors")), default=0)

    def remove_snapshots(self, keep: set[int]) -> None:
        """Remove the snapshots of all versions but those to `keep`."""
        for path in self.snapshots.glob("*.safetensors"):
            if int(path.stem) not in keep:
                path.unlink()

    def roll_back(self, version: int) -> None:
        """Remove the snapshots of later versions: the run continues from `version`."""
        for path in self.snapshots.glob("*.safetensors"):
            if int(path.stem) > version:
                path.unlink()


def _write_json(content: dict[str, Any], path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)

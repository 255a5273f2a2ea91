"""A run's directory: its resolved settings, environment, events, snapshots and results; enough to repeat the run.

config.yaml environment.json events.jsonl faults.yaml logs/ snapshots/ checkpoints/   written while the run trains
segments/<version>/ result-<version>.json right-<version>.npz                         before a resume
best.safetensors last.safetensors model.json model.onnx                               once it is evaluated
curves.png confusion.png right.npz result.json                                        once it is evaluated
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psys.config import NAME, read_yaml, validate, write_yaml
from psys.data.source_name import source_location
from psys.errors import PsysError
from psys.files import write_json
from psys.run.checkpoint import Checkpoints
from psys.run.config import RunConfig
from psys.run.environment import environment
from psys.run.faults import read_plan
from psys.run.lock import run_lock

# All that a start which was killed may have left, beside the lock that marks it; its directory is free for another one.
_BEFORE_THE_START = {
    *("config.yaml", "environment.json", "faults.yaml", "config.tmp", "environment.tmp", "faults.tmp"),
    *("events.jsonl", "lock", "logs", "snapshots", "token"),
}
_EVENT_BYTES = 1 << 20


class RunDirectory:
    """Paths and files of one run. `store`: where its prepared store is now, if not where its settings say."""

    def __init__(self, path: Path, store: Path | None = None) -> None:
        self.path, self._store = path, store
        self.events, self.logs, self.snapshots = path / "events.jsonl", path / "logs", path / "snapshots"
        self.config_file, self.token = path / "config.yaml", path / "token"
        self.result_file = path / "result.json"

    @classmethod
    def reserve(cls, config: RunConfig) -> "RunDirectory":
        """The directory of a new run, made if there is none of its name. An unnamed run gets a name of its own.

        Raises PsysError if the directory holds something else than a run, or if it cannot be made.
        """
        start = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.mode}"
        for number in itertools.count(1):
            run = cls(config.runs / (config.name or (start if number == 1 else f"{start}-{number}")))
            try:
                run.path.mkdir(parents=True, exist_ok=config.name is not None)
                found = set(os.listdir(run.path))
                if found and not run.begun and not ("lock" in found and found <= _BEFORE_THE_START):
                    raise PsysError(f"{run.path} holds other files than those of a run: choose another --name")
                return run
            except FileExistsError:
                if config.name or not run.path.is_dir():
                    raise PsysError(f"cannot make the run directory {run.path}: there is a file of that name") from None
            except OSError as error:
                raise PsysError(f"cannot make the run directory {run.path}: {error.strerror}") from None
        raise AssertionError("not reached")

    @classmethod
    def create(cls, config: RunConfig) -> "RunDirectory":
        """Make the directory of a new run and write its settings. Raises PsysError as `reserve` and `begin`."""
        run = cls.reserve(config)
        run.begin(config)
        return run

    def begin(self, config: RunConfig) -> None:
        """Write the settings of a new run.

        Raises PsysError if there is a run in the directory already, or if its fault plan names a worker too many.
        """
        if self.begun:
            raise PsysError(
                f"{self.path} holds a run already: continue it with --resume {self.path}, or choose another --name"
            )
        read_plan(config.faults, config.workers)
        try:
            self.snapshots.mkdir(exist_ok=True)
            self.logs.mkdir(exist_ok=True)
        except OSError as error:
            raise PsysError(f"cannot write the run directory {self.path}: {error.strerror}") from None
        self.update(config)

    @property
    def begun(self) -> bool:
        """Whether server 0 has ever started the run, which is its first event."""
        with contextlib.suppress(FileNotFoundError), self.events.open("rb") as file:
            return file.readline(_EVENT_BYTES).endswith(b"\n")
        return False

    def locked(self, wait: float = 0.0) -> AbstractContextManager[None]:
        """The right to start, change and end the run, for a `with` block (see psys.run.lock.run_lock)."""
        return run_lock(self.path, wait)

    def remove(self) -> None:
        """Remove the directory of a run that never began."""
        assert not self.begun
        for name in _BEFORE_THE_START:
            path = self.path / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody else has put a file there
            self.path.rmdir()

    def update(self, config: RunConfig) -> None:
        """Write the settings that the run has from now on, its fault plan, and the environment. Paths are absolute.

        Raises PsysError if the directory cannot be written, or if the fault plan is wrong.
        """
        here = self.path.absolute()
        paths: dict[str, Any] = {"runs": here.parent, "name": _name(here), "store": config.store.absolute()}
        if config.source is not None:
            paths["source"] = source_location(config.source)
        plan = read_plan(config.faults)
        try:
            if config.faults:
                write_yaml(plan, self.path / "faults.yaml")
                paths["faults"] = here / "faults.yaml"
            write_yaml(config.model_copy(update=paths), self.config_file)
            write_json(environment(), self.path / "environment.json")
        except OSError as error:
            raise PsysError(f"cannot write the run directory {self.path}: {error.strerror}") from None

    def archive_settings(self, version: int) -> None:
        """Keep the settings and the environment until now, of a run that continues from `version` with others.

        If the run goes back to `version`, the settings that applied there are kept, and later ones are removed.
        """
        segments = self.path / "segments"
        segments.mkdir(exist_ok=True)
        later = sorted(path for path in segments.iterdir() if path.name.isdecimal() and int(path.name) >= version)
        kept, writing = segments / f"{version:08d}", segments / ".writing"
        if kept not in later:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir()
            for name in ("config.yaml", "environment.json"):
                shutil.copyfile((later[0] if later else self.path) / name, writing / name)
            writing.rename(kept)
        for path in later:
            if path != kept:
                shutil.rmtree(path)

    def archive_result(self) -> None:
        """Keep the result until now under the name of its last version; the run is not `complete` any more."""
        version = self.result()["last"]["version"]
        for file in (self.path / "right.npz", self.result_file):
            if file.exists():
                file.replace(file.with_stem(f"{file.stem}-{version:08d}"))

    def write_token(self, token: str) -> None:
        """Write the token that every joining process must have; only the user of this process can read the file."""
        self.token.touch(0o600)
        self.token.write_text(token + "\n", encoding="utf-8")

    def config(self) -> RunConfig:
        """The run's resolved settings, with its paths as they are now. Raises PsysError if this is no run directory."""
        config = validate(RunConfig, read_yaml(self.config_file), where=str(self.config_file))
        here = self.path.absolute()
        paths: dict[str, Any] = {"runs": here.parent, "name": _name(here)}
        paths["store"] = self._store or _moved(config.store, config.runs / (config.name or ""), here)
        if config.faults:
            paths["faults"] = here / "faults.yaml"
        return config.model_copy(update=paths)

    @property
    def complete(self) -> bool:
        """The run was evaluated, and `result` has its figures."""
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
        write_json(content, self.result_file)

    def write_model(self, description: dict[str, Any]) -> None:
        """Write model.json (see psys.run.description), whole or not at all."""
        write_json(description, self.path / "model.json")

    def write_right(self, right: Mapping[str, NDArray[np.bool_]]) -> None:
        """Write right.npz, whole or not at all: by snapshot, whether each test image is predicted right."""
        temporary = self.path / "right.tmp"
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **right)
        temporary.replace(self.path / "right.npz")

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


def _name(folder: Path) -> str | None:
    """The run's name; None if the folder was given one that a run cannot have."""
    return folder.name if re.match(NAME, folder.name) else None


def _moved(store: Path, before: Path, here: Path) -> Path:
    """Where the store of a run is that was moved from `before`: in its place, or moved together with the run."""
    if store.exists():
        return store
    together = Path(os.path.normpath(here / os.path.relpath(store, before)))
    return together if together.exists() else store

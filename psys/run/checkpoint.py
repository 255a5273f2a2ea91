"""Checkpoints: everything a run needs to continue, as one version, written whole or not at all, with hashes.

    checkpoints/<version>/state.safetensors   parameters, statistics, the optimizer's vectors
    checkpoints/<version>/manifest.json       format, ledger, training time, and the hashes of the state and of itself

A folder is written under a temporary name, synced and renamed; nothing in it is ever unpickled. While a checkpoint
replaces one of the same version, the earlier one is called <version>.old.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from psys.config import Config, validate
from psys.errors import PsysError
from psys.ps.ledger import LedgerState
from psys.ps.store import SliceState
from psys.run.snapshots import save_tensors

FORMAT = 2
"""Version of the format of a checkpoint."""

_STATE, _MANIFEST, _TEMPORARY, _OLD = "state.safetensors", "manifest.json", ".writing", ".old"
_MANIFEST_BYTES = 64 << 20  # psys writes none that is longer


class CheckpointMetadata(Config):
    """The part of a checkpoint that is not vectors."""

    version: int = Field(ge=0)
    """updates applied"""
    train_seconds: float = Field(ge=0)
    """training time spent on them"""
    workers_named: int = Field(ge=0)
    """workers that were given a name so far"""
    ledger: LedgerState


class _Manifest(Config):
    format: int
    metadata: CheckpointMetadata
    state_sha256: str
    sha256: str
    """of this manifest without this field"""


class Checkpoint(NamedTuple):
    """One version of a run, read from its folder."""

    path: Path
    metadata: CheckpointMetadata
    state: SliceState  # of all slices together


class Checkpoints:
    """The checkpoints of one run, of which the latest `keep` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep

    def save(self, metadata: CheckpointMetadata, state: SliceState) -> Path:
        """Write a checkpoint, then remove the oldest. Raises OSError, having changed nothing."""
        temporary = self.folder / _TEMPORARY
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        path = self._path(metadata.version)
        try:
            tensors = {"parameters": state.parameters, "statistics": state.statistics}
            optimizer = {f"optimizer.{name}": vector for name, vector in state.optimizer.items()}
            save_tensors({**tensors, **optimizer}, temporary / _STATE)
            digest = _sha256(temporary / _STATE)
            content = {"format": FORMAT, "metadata": metadata.model_dump(mode="json"), "state_sha256": digest}
            manifest = json.dumps({**content, "sha256": _manifest_sha256(content)})
            (temporary / _MANIFEST).write_text(manifest + "\n", encoding="utf-8")
            for each in (temporary / _STATE, temporary / _MANIFEST, temporary):
                _sync(each)
            replaced = path.with_suffix(_OLD)
            if path.exists():  # of the same version, from before the run was resumed
                shutil.rmtree(replaced, ignore_errors=True)
                path.rename(replaced)
            temporary.rename(path)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        for old in self._paths()[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def newest(self, version: int | None = None) -> tuple[Checkpoint | None, list[str]]:
        """The newest usable checkpoint, and why each newer one cannot be used; with `version`, none later than it."""
        refused: list[str] = []
        for path in reversed(self._paths()):
            if version is not None and int(path.stem) > version:
                continue
            try:
                return load(path), refused
            except PsysError as error:
                refused.append(str(error))
        return None, refused

    def roll_back(self, version: int) -> None:
        """Remove the checkpoints of later versions: the run continues from `version`."""
        for path in self._paths():
            if int(path.stem) > version:
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, version: int) -> Path:
        return self.folder / f"{version:08d}"

    def _paths(self) -> list[Path]:
        """By version, oldest first."""
        with contextlib.suppress(FileNotFoundError):
            found = [p for p in self.folder.iterdir() if p.stem.isdecimal() and p.suffix in ("", _OLD)]
            return sorted(found, key=lambda p: (int(p.stem), p.suffix == ""))
        return []


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises PsysError if it is torn (a file is missing or cut short), damaged, or of another version of psys.
    """
    try:
        if (path / _MANIFEST).stat().st_size > _MANIFEST_BYTES:
            raise PsysError(f"checkpoint {path}: its manifest is far too large")
        content = json.loads((path / _MANIFEST).read_bytes())
        if not isinstance(content, dict):
            raise ValueError
        digest = _sha256(path / _STATE)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{_MANIFEST} is not a JSON object"
        raise PsysError(f"checkpoint {path} is torn: {reason or error}") from None
    if (found := content.get("format", 1)) != FORMAT:
        raise PsysError(
            f"checkpoint {path} was written by another version of psys: it has format {str(found)[:20]!r}, "
            f"this version reads format {FORMAT}"
        )
    manifest = validate(_Manifest, content, where=str(path / _MANIFEST))
    if manifest.state_sha256 != digest:
        raise PsysError(f"checkpoint {path} is damaged: the hash of {_STATE} is not the one in its manifest")
    if manifest.sha256 != _manifest_sha256(content):
        raise PsysError(f"checkpoint {path} is damaged: {_MANIFEST} was changed after it was written")
    try:
        tensors = load_file(path / _STATE)
        if any(vector.dtype != torch.float32 or vector.dim() != 1 for vector in tensors.values()):
            raise PsysError(f"checkpoint {path} is damaged: {_STATE} holds more than vectors of float32")
        parameters, statistics = tensors.pop("parameters"), tensors.pop("statistics")
    except (SafetensorError, KeyError, OSError) as error:
        raise PsysError(f"checkpoint {path} is damaged: {' '.join(str(error).split())[:200]}") from None
    optimizer = {name.removeprefix("optimizer."): vector for name, vector in tensors.items()}
    return Checkpoint(path, manifest.metadata, SliceState(manifest.metadata.version, parameters, statistics, optimizer))


def concatenate_states(states: list[SliceState]) -> SliceState:
    """The state of the whole vector from the states of all slices, in order; server 0 has the statistics."""

    def concatenate(vectors: list[Tensor]) -> Tensor:
        return torch.cat(vectors) if len(vectors) > 1 else vectors[0]

    first = states[0]
    optimizer = {name: concatenate([state.optimizer[name] for state in states]) for name in first.optimizer}
    return SliceState(first.version, concatenate([state.parameters for state in states]), first.statistics, optimizer)


def state_of_slice(state: SliceState, span: slice, number: int) -> SliceState:
    """Server `number`'s part of the state of the whole vector. Its vectors own their memory: a view is sent whole."""
    optimizer = {name: vector[span].clone() for name, vector in state.optimizer.items()}
    statistics = state.statistics if number == 0 else state.statistics[:0]
    return SliceState(state.version, state.parameters[span].clone(), statistics, optimizer)


def _manifest_sha256(content: dict[str, Any]) -> str:
    """The hash of a manifest's content, without its own hash."""
    unsigned = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(unsigned, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

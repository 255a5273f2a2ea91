"""Checkpoints: everything a run needs to go on, as one version, whole or not at all, with hashes.

    checkpoints/<version>/state.safetensors   parameters, statistics, the optimizer's vectors
    checkpoints/<version>/manifest.json       ledger, clock, names given, and the hash of the state and of itself

A folder is written aside, synced and renamed; nothing in it is ever unpickled. One of the same version is called
<version>.old until the new one stands.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from psys.config import Config, validate
from psys.errors import PsysError
from psys.ps.ledger import LedgerState
from psys.ps.store import StoreState

_STATE, _MANIFEST, _ASIDE, _OLD = "state.safetensors", "manifest.json", ".writing", ".old"
_MANIFEST_BYTES = 64 << 20  # a longer one is not ours


class Books(Config):
    """What is not vectors: of the coordinator and of the run's clock."""

    version: int = Field(ge=0)
    """updates applied"""
    train_seconds: float = Field(ge=0)
    """spent on them"""
    names: int = Field(ge=0)
    """workers named so far"""
    ledger: LedgerState


class _Manifest(Config):
    books: Books
    state_sha256: str
    sha256: str
    """of this manifest without this field"""


class Checkpoint(NamedTuple):
    """One version of a run, from its file."""

    path: Path
    books: Books
    state: StoreState


class Checkpoints:
    """The checkpoints of one run, of which the last `keep` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep

    def save(self, books: Books, state: StoreState) -> Path:
        """Write one, then remove the oldest. Raises OSError, having changed nothing."""
        aside = self.folder / _ASIDE
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        path = self._path(books.version)
        try:
            tensors = {"parameters": state.parameters, "statistics": state.statistics}
            optimizer = {f"optimizer.{name}": vector for name, vector in state.optimizer.items()}
            save_tensors({**tensors, **optimizer}, aside / _STATE)
            digest = _sha256(aside / _STATE)
            books_json = books.model_dump(mode="json")
            content = {"books": books_json, "state_sha256": digest, "sha256": _seal(books_json, digest)}
            (aside / _MANIFEST).write_text(json.dumps(content) + "\n", encoding="utf-8")
            for each in (aside / _STATE, aside / _MANIFEST, aside):
                _sync(each)
            replaced = path.with_suffix(_OLD)
            if path.exists():  # of the same version, from before the run was set back
                shutil.rmtree(replaced, ignore_errors=True)
                path.rename(replaced)
            aside.rename(path)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        _sync(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        for old in self._paths()[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest sound one, and why each newer one is not."""
        refused: list[str] = []
        for path in reversed(self._paths()):
            try:
                return load(path), refused
            except PsysError as error:
                refused.append(str(error))
        return None, refused

    def set_back(self, version: int) -> None:
        """Remove what is newer than `version`: the run goes on from there."""
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
    """Read a checkpoint. Raises PsysError if it is torn, was changed, or is none."""
    try:
        if (path / _MANIFEST).stat().st_size > _MANIFEST_BYTES:
            raise PsysError(f"checkpoint {path}: its manifest is far too large")
        content = json.loads((path / _MANIFEST).read_bytes())
        if not isinstance(content, dict):
            raise ValueError("no mapping")
        digest = _sha256(path / _STATE)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{_MANIFEST} is not JSON"
        raise PsysError(f"checkpoint {path} is torn: {reason or error}") from None
    manifest = validate(_Manifest, content, where=str(path / _MANIFEST))
    if manifest.state_sha256 != digest:
        raise PsysError(f"checkpoint {path} is damaged: {_STATE} is not what its manifest has the hash of")
    if manifest.sha256 != _seal(content["books"], digest):
        raise PsysError(f"checkpoint {path} is damaged: {_MANIFEST} was changed after it was written")
    try:
        tensors = load_file(path / _STATE)
        if any(vector.dtype != torch.float32 or vector.dim() != 1 for vector in tensors.values()):
            raise PsysError(f"checkpoint {path} is damaged: {_STATE} holds more than vectors of float32")
        parameters, statistics = tensors.pop("parameters"), tensors.pop("statistics")
    except (SafetensorError, KeyError, OSError) as error:
        raise PsysError(f"checkpoint {path} is damaged: {' '.join(str(error).split())[:200]}") from None
    optimizer = {name.removeprefix("optimizer."): vector for name, vector in tensors.items()}
    return Checkpoint(path, manifest.books, StoreState(manifest.books.version, parameters, statistics, optimizer))


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Raises OSError."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from None


def joined(parts: list[StoreState]) -> StoreState:
    """One state from those of all servers, in order; server 0 has the statistics."""

    def whole(vectors: list[Tensor]) -> Tensor:
        return torch.cat(vectors) if len(vectors) > 1 else vectors[0]

    first = parts[0]
    optimizer = {name: whole([part.optimizer[name] for part in parts]) for name in first.optimizer}
    return StoreState(first.version, whole([part.parameters for part in parts]), first.statistics, optimizer)


def part_of(state: StoreState, span: slice, number: int) -> StoreState:
    """Server `number`'s part of a whole state. Its vectors own their memory, for a view would be sent whole."""
    optimizer = {name: vector[span].clone() for name, vector in state.optimizer.items()}
    statistics = state.statistics if number == 0 else state.statistics[:0]
    return StoreState(state.version, state.parameters[span].clone(), statistics, optimizer)


def _seal(books: object, state_sha256: str) -> str:
    return hashlib.sha256(json.dumps([books, state_sha256], sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

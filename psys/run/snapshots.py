"""Files of tensors: the snapshots of a run, and the networks that its evaluation leaves."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from psys.compute.flat import FlatModel
from psys.errors import PsysError


def save_snapshot(parameters: Tensor, statistics: Tensor, path: Path) -> None:
    """Write the flat vectors of one version (see FlatModel), whole or not at all. Raises OSError."""
    _replace({"parameters": parameters, "statistics": statistics}, path)


def load_snapshot(model: FlatModel, path: Path) -> None:
    """Load a snapshot into `model`. Raises PsysError if the file is missing or damaged, or of another model."""
    try:
        tensors = load_file(path)
        model.load(tensors["parameters"], tensors["statistics"])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PsysError(f"cannot load {path}: {reason}") from None


def save_module(module: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a module's parameters and buffers by name, and `metadata`, whole or not at all. Raises OSError."""
    tensors = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    # Cloned: the tensors are views into one vector, and safetensors writes neither shared storage nor channels_last.
    copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    _replace(copies, path, metadata)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a new safetensors file with the permissions that any new file has. Raises OSError."""
    path.unlink(missing_ok=True)
    path.touch()
    permissions = path.stat().st_mode
    try:
        save_file(tensors, path, dict(metadata) if metadata else None)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from None
    path.chmod(permissions)  # safetensors makes files that nobody else can read, whatever the umask


def _replace(tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        save_tensors(tensors, temporary, metadata)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise

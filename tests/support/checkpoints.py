"""Small checkpoints of known content, and child processes that fail while they write one."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from psys.ps.ledger import Ledger
from psys.ps.store import SliceState
from psys.run.checkpoint import Checkpoint, CheckpointMetadata, Checkpoints

PARAMETERS, STATISTICS, BATCHES = 16, 6, 500
STATE, MANIFEST = "state.safetensors", "manifest.json"


def random_vector(seed: int, length: int) -> torch.Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(seed))


def metadata_of(version: int) -> CheckpointMetadata:
    """Every second batch of the first 20 is applied, one is leased for the second time, one is accepted."""
    ledger = Ledger(1, BATCHES, 1)
    leases = [ledger.lease("worker0", 0, slot=0) for _ in range(20 * version)]
    for lease in leases[::2]:
        ledger.accept(lease)
        ledger.apply(lease)
    ledger.take_back(leases[1:2])
    ledger.lease("worker1", version, slot=0)
    ledger.accept(ledger.lease("worker1", version, slot=1))
    return CheckpointMetadata(version=version, train_seconds=1.5 * version, workers_named=2, ledger=ledger.state())


def state_of(version: int) -> SliceState:
    """The state of a model with PARAMETERS parameters; other versions have other values."""
    momentum, squares = (random_vector(version + offset, PARAMETERS) for offset in (1, 2))
    optimizer = {"momentum": momentum, "squares": squares}
    return SliceState(version, random_vector(version, PARAMETERS), random_vector(version + 3, STATISTICS), optimizer)


def saved(folder: Path, *versions: int, keep: int = 9) -> Checkpoints:
    """The checkpoints of the given versions."""
    checkpoints = Checkpoints(folder, keep)
    for version in versions:
        checkpoints.save(metadata_of(version), state_of(version))
    return checkpoints


def states_equal(found: SliceState, expected: SliceState) -> bool:
    vectors, others = found.vectors(), expected.vectors()
    return (
        found.version == expected.version
        and vectors.keys() == others.keys()
        and all(torch.equal(vector, others[name]) for name, vector in vectors.items())
    )


def is_intact(checkpoint: Checkpoint | None, version: int) -> bool:
    """Whether the checkpoint is exactly what `saved` wrote for that version."""
    return (
        checkpoint is not None
        and checkpoint.metadata == metadata_of(version)
        and states_equal(checkpoint.state, state_of(version))
    )


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def exit_code_of_child(action: Callable[[], object]) -> int:
    """Run `action` in a forked child process; returns its exit code, 1 if the action raised."""
    if not (pid := os.fork()):
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)  # the child is a copy of pytest, which must not continue
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

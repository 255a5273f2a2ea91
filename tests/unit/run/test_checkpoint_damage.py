"""Damaged and forged checkpoints: each is refused with its path, or restores a state that fits the run."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from psys.errors import PsysError
from psys.ps.ledger import Ledger
from psys.ps.optimizer import OptimizerConfig
from psys.ps.store import ParameterStore
from psys.run.checkpoint import Checkpoint, load
from tests.support.checkpoints import BATCHES, MANIFEST, PARAMETERS, STATE, STATISTICS, is_intact, saved
from tests.support.mutations import damaged, with_changed_node


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return saved(tmp_path / "checkpoints", 3).folder / "00000003"


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    content = json.loads((checkpoint / MANIFEST).read_bytes())
    assert isinstance(content, dict)
    return content


def write_manifest(checkpoint: Path, content: Any) -> None:
    write(checkpoint / MANIFEST, json.dumps(content).encode())


def with_valid_hash(content: dict[str, Any]) -> dict[str, Any]:
    """The manifest as an attacker would forge it who knows how its hash is made."""
    unsigned = {name: value for name, value in content.items() if name != "sha256"}
    return {**unsigned, "sha256": hashlib.sha256(json.dumps(unsigned, sort_keys=True).encode()).hexdigest()}


def write(path: Path, data: bytes) -> None:
    """Write a new file: file systems take longer to overwrite one."""
    path.unlink()
    path.write_bytes(data)


def forge_state(checkpoint: Path, data: bytes) -> None:
    """Replace the state, with a manifest that has the right hashes."""
    write(checkpoint / STATE, data)
    digest = hashlib.sha256(data).hexdigest()
    write_manifest(checkpoint, with_valid_hash({**read_manifest(checkpoint), "state_sha256": digest}))


def count_refusals(
    path: Path, cases: int, change: Callable[[Random], None], check: Callable[[Checkpoint], object]
) -> int:
    """How often `load` refuses the changed checkpoint; `check` must hold for what it loads."""
    originals = {name: (path / name).read_bytes() for name in (STATE, MANIFEST)}
    reasons = []
    for seed in range(cases):
        change(Random(seed))
        try:
            loaded = load(path)
        except PsysError as error:
            reasons.append(str(error))
        else:
            assert check(loaded), f"seed {seed}"
        for name, data in originals.items():
            write(path / name, data)
    assert all(str(path) in reason and len(reason) < 3000 for reason in reasons)
    return len(reasons)


def is_unchanged(loaded: Checkpoint) -> bool:
    return is_intact(loaded, 3)


def fits_the_run_or_is_refused(loaded: Checkpoint) -> bool:
    """Restoring the checkpoint raises ValueError or loses no batch."""
    try:
        ledger = Ledger(1, BATCHES, 1)
        ledger.restore(loaded.metadata.ledger)
        optimizer = OptimizerConfig(kind="rmsprop")
        store = ParameterStore(torch.zeros(PARAMETERS), PARAMETERS, torch.zeros(STATISTICS), optimizer)
        store.restore(loaded.state)
    except ValueError:
        return True
    return ledger.account().lost == 0


@pytest.mark.parametrize("name", [STATE, MANIFEST])
def test_damaged_bytes_are_refused_or_change_nothing(checkpoint: Path, name: str) -> None:
    def change(random: Random) -> None:
        write(checkpoint / name, damaged((checkpoint / name).read_bytes(), random))

    assert count_refusals(checkpoint, 200, change, is_unchanged) > 180


def test_manifest_with_other_values_is_refused(checkpoint: Path) -> None:
    def change(random: Random) -> None:
        write_manifest(checkpoint, with_changed_node(read_manifest(checkpoint), random))

    assert count_refusals(checkpoint, 200, change, is_unchanged) > 190


def test_forged_manifest_is_refused_or_fits_the_run(checkpoint: Path) -> None:
    def change(random: Random) -> None:
        write_manifest(checkpoint, with_valid_hash(with_changed_node(read_manifest(checkpoint), random)))

    assert count_refusals(checkpoint, 300, change, fits_the_run_or_is_refused) > 150


def test_forged_state_is_refused_or_fits_the_run(checkpoint: Path) -> None:
    """Only safetensors stands between the bytes and the run."""

    def change(random: Random) -> None:
        data = (checkpoint / STATE).read_bytes()
        header = 8 + int.from_bytes(data[:8], "little")
        forge_state(checkpoint, damaged(data[:header], random) + data[header:])

    assert count_refusals(checkpoint, 200, change, fits_the_run_or_is_refused) > 130


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"parameters": torch.zeros(PARAMETERS)},
        {"statistics": torch.zeros(STATISTICS)},
        {"parameters": torch.tensor(1.0), "statistics": torch.zeros(STATISTICS)},
        {"parameters": torch.zeros(PARAMETERS, 2), "statistics": torch.zeros(STATISTICS)},
        {"parameters": torch.zeros(PARAMETERS), "statistics": torch.tensor(1.0)},
        {"parameters": torch.zeros(PARAMETERS), "statistics": torch.zeros(STATISTICS), "other": torch.tensor(1)},
        {"parameters": torch.zeros(PARAMETERS, dtype=torch.bool), "statistics": torch.zeros(STATISTICS)},
    ],
)
def test_missing_tensors_and_tensors_of_another_kind_are_refused(
    checkpoint: Path, tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    save_file(tensors, tmp_path / "other")
    forge_state(checkpoint, (tmp_path / "other").read_bytes())
    with pytest.raises(PsysError, match=r"checkpoint .* is damaged"):
        load(checkpoint)


class TouchesFileWhenUnpickled:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


def test_nothing_is_ever_unpickled(checkpoint: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    pickled = pickle.dumps(TouchesFileWhenUnpickled(mark))
    torch.save(TouchesFileWhenUnpickled(mark), tmp_path / "torch")
    for data in (pickled, (tmp_path / "torch").read_bytes()):
        forge_state(checkpoint, data)
        with pytest.raises(PsysError, match="is damaged"):
            load(checkpoint)
    (checkpoint / MANIFEST).write_bytes(pickled)
    with pytest.raises(PsysError, match="is torn"):
        load(checkpoint)
    assert not mark.exists()
    pickle.loads(pickled)
    assert mark.exists()  # unpickling would have been noticed

"""Checkpoints that were killed in the writing, damaged, forged, or found no room: never a wrong one, never a traceback.

What a test does to the process (killing it, taking its disk) is done to a child of it.
"""

import hashlib
import json
import os
import pickle
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from psys.errors import PsysError
from psys.ps.ledger import Ledger
from psys.ps.partition import partition
from psys.ps.store import Contribution, OptimizerConfig, ParameterStore, StoreState
from psys.run.checkpoint import Books, Checkpoint, Checkpoints, joined, load, part_of

NUMEL, STATISTICS, BATCHES = 16, 6, 500
STATE, MANIFEST = "state.safetensors", "manifest.json"
OPTIMIZERS = {
    "sgd": OptimizerConfig(kind="sgd", weight_decay=1e-3),
    "rmsprop": OptimizerConfig(kind="rmsprop", weight_decay=1e-3),
    "adam": OptimizerConfig(kind="adam", weight_decay=1e-3),
}
_KILLED = 77  # exit code of a child that was


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def books(version: int) -> Books:
    """Every other batch of the first is applied, one is out for the second time, one was accepted."""
    ledger = Ledger(1, BATCHES, 1)
    leases = [ledger.lease("worker0", 0, slot=0) for _ in range(20 * version)]
    for lease in leases[::2]:
        ledger.accept(lease)
        ledger.apply(lease)
    ledger.take_back(leases[1:2])
    ledger.lease("worker1", version, slot=0)
    ledger.accept(ledger.lease("worker1", version, slot=1))
    return Books(version=version, train_seconds=1.5 * version, names=2, ledger=ledger.state())


def state(version: int, numel: int = NUMEL) -> StoreState:
    optimizer = {"momentum": draw(version + 1, numel), "squares": draw(version + 2, numel)}
    return StoreState(version, draw(version, numel), draw(version + 3, STATISTICS), optimizer)


def written(folder: Path, *versions: int, keep: int = 9) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for version in versions:
        checkpoints.save(books(version), state(version))
    return checkpoints


def is_state(found: StoreState, expected: StoreState) -> bool:
    return (
        found.version == expected.version
        and torch.equal(found.parameters, expected.parameters)
        and torch.equal(found.statistics, expected.statistics)
        and found.optimizer.keys() == expected.optimizer.keys()
        and all(torch.equal(vector, expected.optimizer[name]) for name, vector in found.optimizer.items())
    )


def is_whole(checkpoint: Checkpoint | None, version: int) -> bool:
    return checkpoint is not None and checkpoint.books == books(version) and is_state(checkpoint.state, state(version))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def child(action: Callable[[], object]) -> int:
    """Run `action` in a child; its exit code."""
    if not (pid := os.fork()):
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)  # it is pytest as well: it must not go on as that
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_what_was_saved_is_found_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    assert checkpoints.newest() == (None, [])
    path = checkpoints.save(books(3), state(3))
    assert names(path) == [MANIFEST, STATE]
    found, refused = checkpoints.newest()
    assert is_whole(found, 3)
    assert found is not None
    assert found.path == path
    assert refused == []


def test_the_last_of_them_stay_and_those_of_the_undone_go(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 1, 2, 9, 10, 11, keep=3)
    assert names(tmp_path) == ["00000009", "00000010", "00000011"]
    checkpoints.set_back(9)
    assert names(tmp_path) == ["00000009"]


def test_one_of_the_same_version_takes_the_place_of_the_other(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 1, 2)
    for more in range(3):
        checkpoints.save(books(2).model_copy(update={"names": more}), state(2))
        found, _ = checkpoints.newest()
        assert found is not None
        assert found.books.names == more
    assert names(tmp_path) == ["00000001", "00000002"]


def remove_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


def remove_state(path: Path) -> None:
    (path / STATE).unlink()


def cut_manifest(path: Path) -> None:
    os.truncate(path / MANIFEST, (path / MANIFEST).stat().st_size - 2)


def cut_state(path: Path) -> None:
    os.truncate(path / STATE, (path / STATE).stat().st_size - 1)


def empty_all(path: Path) -> None:
    os.truncate(path / STATE, 0)
    os.truncate(path / MANIFEST, 0)


def swell_manifest(path: Path) -> None:
    os.truncate(path / MANIFEST, 65 << 20)  # sparse


def take_anothers_state(path: Path) -> None:
    (path / STATE).write_bytes((path.with_name("00000001") / STATE).read_bytes())


def raise_version(path: Path) -> None:
    content = (path / MANIFEST).read_text(encoding="utf-8")
    (path / MANIFEST).write_text(content.replace('"version": 3', '"version": 4'), encoding="utf-8")


def be_a_list(path: Path) -> None:
    (path / MANIFEST).write_text("[]", encoding="utf-8")


def be_a_file(path: Path) -> None:
    remove_manifest(path)
    remove_state(path)
    path.rmdir()
    path.write_text("a file", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove_manifest, "is torn: No such file"),
        (remove_state, "is torn: No such file"),
        (be_a_file, "is torn: Not a directory"),
        (cut_manifest, "is torn: manifest.json is not JSON"),
        (empty_all, "is torn: manifest.json is not JSON"),
        (be_a_list, "is torn: manifest.json is not JSON"),
        (swell_manifest, "manifest is far too large"),
        (cut_state, "is damaged: state.safetensors is not what"),
        (take_anothers_state, "is damaged: state.safetensors is not what"),
        (raise_version, "is damaged: manifest.json was changed"),
    ],
)
def test_unsound_ones_are_passed_over_and_each_is_named(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    checkpoints = written(tmp_path, 1, 2, 3)
    damage(tmp_path / "00000003")
    remove_state(tmp_path / "00000002")
    found, refused = checkpoints.newest()
    assert is_whole(found, 1)
    for name, why in zip(["00000003", "00000002"], refused, strict=True):
        assert str(tmp_path / name) in why
    assert reason in refused[0]
    checkpoints.set_back(1)
    checkpoints.save(books(2), state(2))
    assert is_whole(checkpoints.newest()[0], 2)


def test_what_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 1, keep=1)
    (tmp_path / "notes").mkdir()
    (tmp_path / "2.txt").write_text("3", encoding="utf-8")
    checkpoints.save(books(2), state(2))
    assert checkpoints.newest()[1] == []
    assert names(tmp_path) == ["00000002", "2.txt", "notes"]


# A kill in the writing, at each of its steps.


def killed_at(step: int, action: Callable[[], object]) -> bool:
    """Do `action` in a child that is killed before its `step`-th call on the file system; whether it came that far."""

    def mortal() -> None:
        left = step

        def count(event: str, arguments: object) -> None:
            nonlocal left
            if event == "open" or event.startswith(("os.", "shutil.")):
                if not left:
                    os._exit(_KILLED)
                left -= 1

        sys.addaudithook(count)
        action()

    code = child(mortal)
    assert code in (0, _KILLED)
    return code == _KILLED


def lives(tmp_path: Path, new: Books) -> Iterator[tuple[Checkpoints, bool]]:
    """Versions 1 and 2, of which two are kept, after every way to be killed while `new` is saved, and after no kill:
    each with whether the new one is there, which it stays once it is."""
    step, there = 0, False
    killed = True
    while killed:
        checkpoints = written(tmp_path / str(step), 1, 2, keep=2)
        killed = killed_at(step, partial(checkpoints.save, new, state(new.version)))
        found, refused = checkpoints.newest()
        assert found is not None
        assert refused == []
        assert found.books == new or (found.books == books(2) and not there)
        assert is_state(found.state, state(found.books.version))
        there = found.books == new
        yield checkpoints, there
        step += 1
    assert there
    assert step > 15


def test_a_kill_leaves_the_last_or_the_new_one_whole(tmp_path: Path) -> None:
    for checkpoints, there in lives(tmp_path, books(3)):
        checkpoints.save(books(4), state(4))
        assert is_whole(checkpoints.newest()[0], 4)
        assert names(checkpoints.folder) == ["00000003" if there else "00000002", "00000004"]


def test_a_kill_while_one_is_replaced_leaves_it_or_the_new_one(tmp_path: Path) -> None:
    for checkpoints, _ in lives(tmp_path, books(2).model_copy(update={"names": 7})):
        checkpoints.save(books(2), state(2))
        assert is_whole(checkpoints.newest()[0], 2)
        checkpoints.save(books(3), state(3))
        assert is_whole(checkpoints.newest()[0], 3)
        assert names(checkpoints.folder) == ["00000002", "00000003"]


@pytest.mark.parametrize("length", [0, 1, 8, 100, None])
def test_what_was_being_written_aside_is_no_checkpoint(tmp_path: Path, length: int | None) -> None:
    """As a power cut may leave it: files of any length, the manifest first."""
    checkpoints = written(tmp_path, 1, 2)
    aside = tmp_path / "00000002"
    (tmp_path / "00000002").rename(aside := tmp_path / ".writing")
    if length is not None:
        os.truncate(aside / STATE, length)
    found, refused = checkpoints.newest()
    assert is_whole(found, 1)
    assert refused == []
    checkpoints.save(books(2), state(2))
    assert names(tmp_path) == ["00000001", "00000002"]
    assert is_whole(checkpoints.newest()[0], 2)


# A full disk.


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("limit", [0, 100, 400, 600])
def test_a_full_disk_is_an_oserror_and_the_earlier_ones_stay(tmp_path: Path, limit: int, version: int) -> None:
    checkpoints = written(tmp_path, 1, 2, keep=2)
    sizes = [(tmp_path / "00000002" / name).stat().st_size for name in (STATE, MANIFEST)]
    assert 400 < sizes[0] < 600 < sizes[1]  # the last limit stops the manifest, the others the state

    def save() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OSError, match="File too large"):
            checkpoints.save(books(version), state(version))

    assert child(save) == 0
    assert names(tmp_path) == ["00000001", "00000002"]
    assert is_whole(load(tmp_path / "00000001"), 1)
    assert is_whole(checkpoints.newest()[0], 2)
    checkpoints.save(books(3), state(3))
    assert is_whole(checkpoints.newest()[0], 3)


def test_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file", encoding="utf-8")
    with pytest.raises(OSError, match="Not a directory"):
        Checkpoints(tmp_path / "checkpoints", 3).save(books(1), state(1))


# Damage.


def damaged(data: bytes, random: Random) -> bytes:
    """Some bits flipped, an end cut off, or bytes put in."""
    place = random.randrange(len(data))
    match random.randrange(4):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + random.randbytes(random.randint(1, 9)) + data[place:]
        case 2:
            return data[:place] + data[place + random.randint(1, 9) :]
        case _:
            changed = bytearray(data)
            for _ in range(random.randint(1, 3)):
                changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
            return bytes(changed)


WRONG: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 1.5, 1e300, 10**30, "", "1", "x", "\ud800"),
    *([], [[]], [1], {}, {"a": 1}, [[[[[[1]]]]]]),
)


def retyped(content: Any, random: Random) -> Any:
    """The same JSON with one thing in it something else, gone, or one too many."""
    content = deepcopy(content)
    spots: list[tuple[Any, Any]] = []

    def visit(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)):
            spots.append((value, key))
            if isinstance(value[key], dict | list):
                visit(value[key])

    visit(content)
    inside, key = random.choice(spots)
    match random.randrange(4):
        case 0:
            del inside[key]
        case 1 if isinstance(inside, dict):
            inside[random.choice(["more", "", "\ud800", "7", "-1"])] = random.choice(WRONG)
        case _:
            inside[key] = random.choice(WRONG)
    return content


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """As somebody would forge it who knows how the hash is made."""
    whole = json.dumps([content.get("books"), content.get("state_sha256")], sort_keys=True).encode()
    return {**content, "sha256": hashlib.sha256(whole).hexdigest()}


def put(path: Path, data: bytes) -> None:
    """Write a file anew: file systems take their time over one that is written over."""
    path.unlink()
    path.write_bytes(data)


def refusals(path: Path, cases: int, change: Callable[[Random], None], check: Callable[[Checkpoint], object]) -> int:
    """How often `load` refused what `change` made of the checkpoint; of what it does not, `check` must hold."""
    whole = {name: (path / name).read_bytes() for name in (STATE, MANIFEST)}
    reasons = []
    for seed in range(cases):
        change(Random(seed))
        try:
            checkpoint = load(path)
        except PsysError as error:
            reasons.append(str(error))
        else:
            assert check(checkpoint), f"seed {seed}"
        for name, data in whole.items():
            put(path / name, data)
    assert all(str(path) in reason for reason in reasons)
    return len(reasons)


@pytest.mark.parametrize("name", [STATE, MANIFEST])
def test_damaged_bytes_are_refused_or_mean_the_same(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, 3).save(books(3), state(3))

    def change(random: Random) -> None:
        put(path / name, damaged((path / name).read_bytes(), random))

    assert refusals(path, 400, change, lambda found: is_whole(found, 3)) > 390


def test_a_manifest_with_other_values_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, 3).save(books(3), state(3))

    def change(random: Random) -> None:
        content = retyped(json.loads((path / MANIFEST).read_bytes()), random)
        put(path / MANIFEST, json.dumps(content).encode())

    assert refusals(path, 300, change, lambda found: is_whole(found, 3)) > 290


def can_be_resumed_or_is_refused(checkpoint: Checkpoint) -> bool:
    try:
        ledger = Ledger(1, BATCHES, 1)
        ledger.restore(checkpoint.books.ledger)
        store = ParameterStore(torch.zeros(NUMEL), NUMEL, torch.zeros(STATISTICS), OPTIMIZERS["rmsprop"])
        store.restore(part_of(checkpoint.state, slice(0, NUMEL), 0))
    except ValueError:
        return True
    return ledger.proof().lost == 0


def test_forged_books_are_refused_or_fit(tmp_path: Path) -> None:
    path = written(tmp_path, 3).save(books(3), state(3))

    def change(random: Random) -> None:
        content = sealed(retyped(json.loads((path / MANIFEST).read_bytes()), random))
        put(path / MANIFEST, json.dumps(content).encode())

    assert refusals(path, 300, change, can_be_resumed_or_is_refused) > 150


def test_a_forged_state_is_refused_or_fits(tmp_path: Path) -> None:
    """Where safetensors alone stands between the bytes and the run."""
    path = written(tmp_path, 3).save(books(3), state(3))

    def change(random: Random) -> None:
        data = (path / STATE).read_bytes()
        header = 8 + int.from_bytes(data[:8], "little")
        forge(path, damaged(data[:header], random) + data[header:])

    assert refusals(path, 300, change, can_be_resumed_or_is_refused) > 200


def forge(path: Path, data: bytes) -> None:
    put(path / STATE, data)
    content = json.loads((path / MANIFEST).read_bytes())
    content = sealed({**content, "state_sha256": hashlib.sha256(data).hexdigest()})
    put(path / MANIFEST, json.dumps(content).encode())


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"parameters": torch.zeros(NUMEL)},
        {"statistics": torch.zeros(STATISTICS)},
        {"parameters": torch.tensor(1.0), "statistics": torch.zeros(STATISTICS)},
        {"parameters": torch.zeros(NUMEL, 2), "statistics": torch.zeros(STATISTICS)},
        {"parameters": torch.zeros(NUMEL), "statistics": torch.tensor(1.0)},
        {"parameters": torch.zeros(NUMEL), "statistics": torch.zeros(STATISTICS), "other": torch.tensor(1)},
        {"parameters": torch.zeros(NUMEL, dtype=torch.bool), "statistics": torch.zeros(STATISTICS)},
    ],
)
def test_tensors_of_another_kind_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = written(tmp_path / "checkpoints", 3).save(books(3), state(3))
    save_file(tensors, tmp_path / "other")
    forge(path, (tmp_path / "other").read_bytes())
    with pytest.raises(PsysError, match=r"checkpoint .* is damaged"):
        load(path)


class Bomb:
    """What would show that it was unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    path = written(tmp_path / "checkpoints", 3).save(books(3), state(3))
    mark = tmp_path / "mark"
    bomb = pickle.dumps(Bomb(mark))
    torch.save(Bomb(mark), tmp_path / "torch")
    for data in (bomb, (tmp_path / "torch").read_bytes()):
        forge(path, data)
        with pytest.raises(PsysError, match="is damaged"):
            load(path)
    (path / MANIFEST).write_bytes(bomb)
    with pytest.raises(PsysError, match="is torn"):
        load(path)
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists()  # it would have gone off


# A state for another number of servers.


def servers(kind: str, count: int, whole: StoreState | None) -> list[ParameterStore]:
    """The stores of `count` servers, from the beginning or from a whole state."""
    numel, decayed, statistics = 1001, 44 * 16, 12
    stores = []
    for number, part in enumerate(partition(numel, count)):
        mine = min(max(decayed - part.start, 0), part.stop - part.start)
        first = draw(0, statistics) if number == 0 else torch.zeros(0)
        stores.append(ParameterStore(draw(1, numel)[part], mine, first, OPTIMIZERS[kind]))
        if whole:
            stores[-1].restore(part_of(whole, part, number))
    return stores


def step(stores: list[ParameterStore], number: int) -> None:
    gradient, statistics = draw(100 + number, 1001), draw(200 + number, 12)
    for store, part in zip(stores, partition(1001, len(stores)), strict=True):
        own = statistics[: len(store.statistics)]
        store.apply([Contribution(gradient[part].clone(), own, 1.0)], 0.05, 0.5)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_run_goes_on_bit_for_bit_on_another_number_of_servers(tmp_path: Path, kind: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    alone = servers(kind, 1, None)
    whole, number = None, 0
    for count in (3, 1, 2, 5):
        stores = servers(kind, count, whole)
        for _ in range(2):
            step(alone, number)
            step(stores, number)
            number += 1
        saved = joined([store.state() for store in stores])
        checkpoints.save(books(number), saved)
        found, _ = checkpoints.newest()
        assert found is not None
        whole = found.state
        assert is_state(whole, alone[0].state())


def test_a_part_owns_its_memory() -> None:
    """A view is sent, and saved, as the whole that it is a view of."""
    whole = state(1)
    part = part_of(whole, slice(4, 12), 1)
    assert len(part.statistics) == 0
    for vector in (part.parameters, *part.optimizer.values()):
        assert vector.untyped_storage().nbytes() == 8 * vector.itemsize

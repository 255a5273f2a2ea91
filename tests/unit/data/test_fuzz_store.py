"""Damaged and crafted prepared stores: each is rejected with one clear error."""

import contextlib
import json
import pickle
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest

from psys.data.store import MANIFEST, PreparedStore
from psys.errors import PsysError
from tests.support.mutations import Malicious, count_rejected, damaged, with_changed_node
from tests.support.stores import write_small_store

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def undamaged_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_store(tmp_path_factory.mktemp("stores") / "small", train_per_class=2, test_per_class=1).path


@pytest.fixture
def store(tmp_path: Path, undamaged_store: Path) -> Path:
    return shutil.copytree(undamaged_store, tmp_path / "store")


def test_damaged_stores_are_rejected(store: Path) -> None:
    manifest = json.loads((store / MANIFEST).read_text())

    def change_columns(random: Random) -> None:
        path = random.choice(sorted(store.glob("*.npy")))
        data = path.read_bytes()
        changed = damaged(data[:128], random) + data[128:]
        path.write_bytes(changed if random.random() < 0.3 else changed[: len(data)].ljust(len(data), b"x"))
        try:
            PreparedStore.open(store).verify()
            assert path.read_bytes() == data
        finally:
            path.write_bytes(data)

    def change_manifest(random: Random) -> None:
        text = json.dumps(with_changed_node(manifest, random), indent=1).encode()
        (store / MANIFEST).write_bytes(damaged(text, random) if random.random() < 0.3 else text)
        opened = PreparedStore.open(store)
        for name in ("train", "test"):
            split = opened.split(name)
            assert split.images.shape == (len(split.labels), *opened.image_size, 3)
            assert split.labels.max() < len(opened.classes)

    PreparedStore.open(store).verify()
    assert count_rejected(100, 9, change_columns, store) == 100
    assert count_rejected(200, 10, change_manifest, store) > 160


def test_damaged_encoded_stores_are_rejected(tmp_path: Path) -> None:
    store = write_small_store(tmp_path / "store", train_per_class=2, test_per_class=1, layout="encoded").path
    manifest = json.loads((store / MANIFEST).read_text())

    def change_columns(random: Random) -> None:
        path = random.choice([*store.glob("*.npy"), *sorted(store.glob("*.bin")) * 5])
        data = path.read_bytes()
        path.write_bytes(damaged(data, random)[: len(data)].ljust(len(data), b"x"))
        try:
            opened = PreparedStore.open(store)
            for name in ("train", "test"):
                split = opened.split(name)
                for row in range(len(split.labels)):
                    with contextlib.suppress(PsysError):
                        assert split.images[row].shape == (32, 32, 3)
                        assert split.masks[row].shape == (128,)
            opened.verify()
            assert path.read_bytes() == data
        finally:
            path.write_bytes(data)

    def change_manifest(random: Random) -> None:
        (store / MANIFEST).write_text(json.dumps(with_changed_node(manifest, random)))
        opened = PreparedStore.open(store)
        assert opened.split("train").images[:].shape == (20, *opened.image_size, 3)

    PreparedStore.open(store).verify()
    assert count_rejected(60, 14, change_columns, store) > 55
    assert count_rejected(60, 15, change_manifest, store) > 35


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "cannot read"),
        ('{"format": "psys-store", "version": 1' + "0" * 5000 + "}", "cannot read"),
        ('{"format": "psys-store", "version": 2}', "'classes': Field required"),
        (" " * (2**24 + 1), "more than 16,777,216 bytes"),
        ("\udcff", "cannot read"),
    ],
    ids=["deep", "long number", "empty", "large", "no UTF-8"],
)
def test_crafted_manifest_is_rejected_with_one_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(PsysError, match=rf"manifest\.json.*{message}|{message}.*manifest\.json"):
        PreparedStore.open(tmp_path)


def test_manifest_must_not_name_files_outside_its_folder(store: Path) -> None:
    manifest = json.loads((store / MANIFEST).read_text())
    entry = manifest["files"]["train_images.npy"]
    for change, message in [
        ({"files": {**manifest["files"], "../../etc/passwd": entry}}, r"wrong: \['\.\./\.\./etc/passwd'\]"),
        ({"splits": {**manifest["splits"], "../../x/train": {"count": 20}}}, "Input should be 'train' or 'test'"),
        ({"files": {}}, r"test_images\.npy"),
    ]:
        (store / MANIFEST).write_text(json.dumps({**manifest, **change}))
        with pytest.raises(PsysError, match=message):
            PreparedStore.open(store)


def test_columns_are_not_unpickled(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((store / MANIFEST).read_text())
    labels = store / "train_labels.npy"
    for write in (
        lambda: np.save(labels, np.array([Malicious()] * 20), allow_pickle=True),
        lambda: labels.write_bytes(pickle.dumps(Malicious())),
        lambda: np.savez(labels.open("wb"), labels=np.zeros(20, np.int64)),
    ):
        write()
        manifest["files"][labels.name]["bytes"] = labels.stat().st_size
        (store / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(PsysError, match=r"cannot read .*train_labels\.npy"):
            PreparedStore.open(store)
    assert capsys.readouterr().out == ""


def test_labels_outside_the_classes_are_rejected(store: Path) -> None:
    labels = np.load(store / "train_labels.npy", mmap_mode="r+")
    labels[7] = 10
    labels.flush()

    with pytest.raises(PsysError, match=r"train_labels\.npy: a label is outside its 10 classes"):
        PreparedStore.open(store)

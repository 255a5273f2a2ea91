import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from psys.data.dataset import DatasetSplit
from psys.data.folders import new_folder
from psys.data.sample import read_sample
from psys.data.store import MANIFEST, PreparedStore
from psys.data.writer import StoreWriter
from psys.errors import PsysError
from tests.support.images import Image, Mask, pixels_of

QUALITY = ("share", "rest")
Rows = tuple[Image, NDArray[np.int64], Mask, NDArray[np.float32], NDArray[np.bool_]]


def rows_of(split: DatasetSplit, rows: slice) -> Rows:
    images = pixels_of(split)[rows]
    masks = images[..., 1] > images.mean(axis=(1, 2, 3), keepdims=True)[..., 0]
    shares = masks.mean(axis=(1, 2)).astype(np.float32)
    return images, split.labels[rows], masks, np.stack([shares, 1 - shares], axis=1), shares < 0.5


def write(folder: Path, batch: int = 7, train: int = 30, test: int = 10) -> Path:
    sample = read_sample()
    with new_folder(folder) as partial:
        writer = StoreWriter(partial, ("train", "test"), (32, 32), QUALITY)
        for split, count in (("train", train), ("test", test)):
            for first in range(0, count, batch):
                writer.append(split, *rows_of(sample.splits[split], slice(first, min(first + batch, count))))
        writer.close(sample.classes, {"train": {}, "test": {}}, note="a store made by a test")
    return folder


def test_written_store_is_read_back(tmp_path: Path) -> None:
    store = PreparedStore.open(write(tmp_path / "store"))
    store.verify()

    images, labels, masks, quality, usable = rows_of(read_sample().train, slice(0, 30))
    split = store.split("train")
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, labels)
    np.testing.assert_array_equal(np.unpackbits(split.masks[:], axis=1).reshape(30, 32, 32), masks)
    np.testing.assert_array_equal(split.usable, usable)
    np.testing.assert_array_equal(store.quality("train"), quality)
    assert store.quality_names == QUALITY
    assert store.classes == read_sample().classes
    assert store.image_size == (32, 32)
    assert isinstance(split.images, np.memmap)
    np.testing.assert_allclose(store.channel_mean, images.mean((0, 1, 2)) / 255)
    np.testing.assert_allclose(store.channel_std, images.std((0, 1, 2)) / 255)


def test_content_hash_is_independent_of_batching(tmp_path: Path) -> None:
    first, second = write(tmp_path / "first", batch=1), write(tmp_path / "second", batch=30)

    assert (first / MANIFEST).read_bytes() == (second / MANIFEST).read_bytes()
    assert PreparedStore.open(first).content_hash == PreparedStore.open(second).content_hash
    assert (
        PreparedStore.open(first).content_hash != PreparedStore.open(write(tmp_path / "third", train=29)).content_hash
    )


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), data=st.data())
def test_masks_of_any_size_are_packed_row_major(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, data: st.DataObject
) -> None:
    masks = np.array(data.draw(st.lists(st.booleans(), min_size=2 * height * width, max_size=2 * height * width)))
    masks = masks.reshape(2, height, width)
    folder = tmp_path_factory.mktemp("store")
    writer = StoreWriter(folder, ("train",), (height, width), ("share",))
    images = np.zeros((2, height, width, 3), np.uint8)
    writer.append("train", images, np.arange(2), masks, np.zeros((2, 1), np.float32), np.ones(2, np.bool_))
    writer.close(("a", "b"), {"train": {}})

    packed = PreparedStore.open(folder).split("train").masks[:]

    np.testing.assert_array_equal(np.unpackbits(packed, axis=1, count=height * width).reshape(masks.shape), masks)


def test_rows_with_another_shape_are_rejected(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, ("train",), (32, 32), QUALITY)
    images, labels, masks, quality, usable = rows_of(read_sample().train, slice(0, 2))

    with pytest.raises(ValueError, match="rows of uint8"):
        writer.append("train", images[:, :16], labels, masks, quality, usable)


def test_interrupted_writer_keeps_the_existing_store(tmp_path: Path) -> None:
    older = PreparedStore.open(write(tmp_path / "store")).content_hash

    def interrupted() -> None:
        with new_folder(tmp_path / "store") as partial:
            StoreWriter(partial, ("train",), (32, 32), QUALITY).append(
                "train", *rows_of(read_sample().train, slice(0, 5))
            )
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert PreparedStore.open(tmp_path / "store").content_hash == older


def test_new_store_replaces_the_existing_one(tmp_path: Path) -> None:
    write(tmp_path / "store")
    write(tmp_path / "store", train=20)

    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert len(PreparedStore.open(tmp_path / "store").split("train").labels) == 20


def test_missing_store_or_other_format_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"no prepared store at .*--store, or prepare it"):
        PreparedStore.open(tmp_path / "nowhere")
    (tmp_path / MANIFEST).write_text('{"format": "cake"}')
    with pytest.raises(PsysError, match="does not describe a prepared store"):
        PreparedStore.open(tmp_path)


def edit_manifest(folder: Path, **fields: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **fields}))


def damage(folder: Path, how: str) -> None:
    images = folder / "train_images.npy"
    match how:
        case "cut":
            images.write_bytes(images.read_bytes()[:-100])
        case "gone":
            images.unlink()
        case "labels of another shape":
            labels = folder / "train_labels.npy"
            np.save(labels, np.zeros((30, 1), np.int64))
        case "cut manifest":
            (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:-100])
        case "version":
            edit_manifest(folder, version=99)
        case "no classes":
            edit_manifest(folder, classes=None)
        case "no size":
            edit_manifest(folder, image_size=[32])
        case "no header":
            images.write_bytes(b"\0" * images.stat().st_size)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", r"train_images\.npy: expected \d+ bytes, found \d+"),
        ("gone", r"train_images\.npy: expected \d+ bytes, found no file"),
        ("labels of another shape", r"train_labels\.npy: expected int64 \(30,\), found int64 \(30, 1\)"),
        ("cut manifest", r"manifest\.json"),
        ("version", "store version 99, expected 2: prepare it again"),
        ("no classes", r"'classes'.*tuple, got None .*manifest\.json: prepare the store again"),
        ("no size", r"'image_size\.1': Field required"),
        ("no header", r"cannot read .*train_images\.npy"),
    ],
)
def test_open_finds_damage(tmp_path: Path, how: str, message: str) -> None:
    folder = write(tmp_path / "store")
    damage(folder, how)

    with pytest.raises(PsysError, match=message):
        PreparedStore.open(folder)


def test_verify_finds_one_changed_pixel(tmp_path: Path) -> None:
    folder = write(tmp_path / "store")
    images = np.load(folder / "test_images.npy", mmap_mode="r+")
    images[4, 4, 4, 0] ^= 1
    images.flush()
    store = PreparedStore.open(folder)

    with pytest.raises(PsysError, match=r"test_images\.npy was changed"):
        store.verify()


def test_unknown_split_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"no split 'val' \(it has: train, test\)"):
        PreparedStore.open(write(tmp_path / "store")).split("val")

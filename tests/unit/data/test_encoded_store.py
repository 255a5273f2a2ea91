"""Stores of encoded images: what is read back, from any size, and what is refused."""

import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from psys.data import writer as writing
from psys.data.encoded import Decoded, decode_image, decode_mask, encode_image, encode_mask
from psys.data.sample import read_sample
from psys.data.store import INDEX, PreparedStore
from psys.data.writer import StoreWriter
from psys.errors import PsysError
from tests.support.stores import write_small_store

IMAGES = read_sample().test.images


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> PreparedStore:
    return write_small_store(tmp_path_factory.mktemp("stores") / "encoded", 4, 2, layout="encoded")


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> PreparedStore:
    return write_small_store(tmp_path_factory.mktemp("stores") / "dense", 4, 2)


def photograph(number: int, height: int, width: int) -> np.ndarray:
    image = IMAGES[number]
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC))


def test_an_encoded_store_holds_what_a_dense_one_does_but_for_what_jpeg_loses(store, dense):
    store.verify()
    for name in ("train", "test"):
        encoded, plain = store.split(name), dense.split(name)
        np.testing.assert_array_equal(encoded.labels, plain.labels)
        np.testing.assert_array_equal(encoded.usable, plain.usable)
        np.testing.assert_array_equal(store.quality(name), dense.quality(name))
        np.testing.assert_array_equal(encoded.masks[:], plain.masks)
        difference = encoded.images[:].astype(float) - plain.images
        assert np.sqrt(np.mean(difference**2)) < 8  # of 255; colours have half the resolution
        assert np.abs(difference.mean((0, 1, 2))).max() < 0.5
    np.testing.assert_allclose(store.channel_mean, dense.channel_mean, atol=0.002)
    np.testing.assert_allclose(store.channel_std, dense.channel_std, atol=0.01)
    assert (store.classes, store.image_size) == (dense.classes, dense.image_size)


def test_rows_are_asked_for_as_of_an_array(store):
    images = store.split("train").images
    assert isinstance(images, Decoded)
    assert images.shape == (40, 32, 32, 3)
    everything = images[:]
    rows = np.array([7, 3, 3, 39, 0])
    np.testing.assert_array_equal(images[rows], everything[rows])
    np.testing.assert_array_equal(images[5:30:7], everything[5:30:7])
    np.testing.assert_array_equal(images[-1], everything[39])
    assert images[np.zeros(0, np.int64)].shape == (0, 32, 32, 3)
    with pytest.raises(IndexError):
        images[40]


@pytest.mark.parametrize("size", [(24, 24), (64, 64), (100, 100), (48, 32)])
@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (131, 70)])
def test_the_middle_of_image_and_mask_is_brought_to_the_size_of_the_training(size, shape):
    """Against OpenCV's resize of the same middle."""
    image = photograph(101, *shape)
    mask = image[..., 1] > 120
    scale = min(shape[0] / size[0], shape[1] / size[1])
    height, width = round(size[0] * scale), round(size[1] * scale)
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    how = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    middle = image[top : top + height, left : left + width]
    wanted = cv2.resize(middle, size[::-1], interpolation=how).astype(float)

    pixels = decode_image(encode_image(image), size)
    bits = np.unpackbits(decode_mask(encode_mask(mask), size), count=size[0] * size[1]).reshape(size)

    assert pixels.shape == (*size, 3)
    assert np.sqrt(np.mean((pixels - wanted) ** 2)) < 8
    wanted_mask = cv2.resize(
        mask[top : top + height, left : left + width] * np.uint8(255), size[::-1], interpolation=how
    )
    assert (bits == (wanted_mask > 127)).mean() > 0.97


def test_images_of_any_size_stand_in_one_store_and_are_read_at_the_size_asked_for(tmp_path):
    writer = StoreWriter(tmp_path, ("train",), (32, 32), ("share",), "encoded")
    shapes = [(40, 80), (33, 33), (97, 61), (20, 24)]
    pictures = [photograph(number, *shape) for number, shape in enumerate(shapes)]
    masks = [picture[..., 0] > 100 for picture in pictures]
    writer.append(
        "train",
        [encode_image(picture) for picture in pictures],
        np.arange(4) % 2,
        [encode_mask(mask) for mask in masks],
        np.zeros((4, 1), np.float32),
        np.ones(4, np.bool_),
    )
    writer.close(("a", "b"), {"train": {}})

    for size in (None, 16, 48):
        split = PreparedStore.open(tmp_path, size).split("train")
        side = size or 32
        assert split.images[:].shape == (4, side, side, 3)
        assert split.masks[:].shape == (4, side * side // 8)
    with Image.open(tmp_path / "train_records_00000.bin") as first:
        assert first.size == (80, 40)


def test_a_dense_store_has_one_size(dense):
    assert PreparedStore.open(dense.path, 32).image_size == (32, 32)
    with pytest.raises(PsysError, match="holds images of 32 x 32 pixels only: prepare another store for 24"):
        PreparedStore.open(dense.path, 24)


def test_records_go_on_in_the_next_file_and_any_batching_makes_the_same_store(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "RECORD_FILE_BYTES", 5000)
    rows = [(encode_image(photograph(n, 32, 40)), encode_mask(photograph(n, 32, 40)[..., 0] > 99)) for n in range(20)]
    found = []
    for batch in (1, 7, 20):
        folder = tmp_path / str(batch)
        folder.mkdir()
        writer = StoreWriter(folder, ("train",), (32, 32), ("share",), "encoded")
        for first in range(0, 20, batch):
            part = rows[first : first + batch]
            images, masks = zip(*part, strict=True)
            ones = np.ones(len(part))
            writer.append("train", images, ones.astype(int), masks, ones[:, None].astype(np.float32), ones > 0)
        writer.close(("a", "b"), {"train": {}})
        store = PreparedStore.open(folder)
        store.verify()
        assert len(list(folder.glob("*.bin"))) > 3
        found.append((store.content_hash, store.split("train").images[:].tobytes()))
    assert found[0] == found[1] == found[2]


def edit(path, row, column, value):
    index = np.load(path / f"train_{INDEX}.npy", mmap_mode="r+")
    index[row, column] = value
    index.flush()


@pytest.mark.parametrize(
    ("column", "value"), [(0, -1), (0, 1), (1, -5), (1, 2**62), (1, 10**6), (2, 2**40), (2, -1), (3, 10**6)]
)
def test_an_index_that_points_outside_is_refused(store, tmp_path, column, value):
    path = shutil.copytree(store.path, tmp_path / "store")
    edit(path, 4, column, value)
    with pytest.raises(PsysError, match=r"train_index\.npy points outside the record files"):
        PreparedStore.open(path)


def test_a_record_that_is_no_image_is_named(store, tmp_path):
    path = shutil.copytree(store.path, tmp_path / "store")
    edit(path, 4, 1, 9)
    split = PreparedStore.open(path).split("train")
    with pytest.raises(PsysError, match=r"train_records_00000\.bin: the image at byte 9 cannot be decoded"):
        split.images[:]
    with pytest.raises(PsysError, match="cannot be decoded"):
        split.masks[np.array([4])]
    split.images[:4]


def test_an_image_that_claims_too_many_pixels_is_not_decoded():
    data = bytearray(encode_image(photograph(0, 32, 32)))
    at = data.index(b"\xff\xc0") + 5
    for side, message in ((9000, "more than 67,108,864 pixels"), (60_000, "could be decompression bomb")):
        data[at : at + 4] = side.to_bytes(2) * 2
        with pytest.raises((ValueError, Image.DecompressionBombError), match=message):
            decode_image(bytes(data), (32, 32))

"""Encoded stores: images of any size, decoding, and damaged stores."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

from psys.data import writer as writer_module
from psys.data.encoded import Decoded, decode_image, decode_mask, encode_image, encode_mask
from psys.data.sample import read_sample
from psys.data.store import INDEX, PreparedStore
from psys.data.writer import StoreWriter
from psys.errors import PsysError
from tests.support.images import Image, pixels_of
from tests.support.stores import write_small_store

IMAGES = pixels_of(read_sample().test)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PreparedStore:
    return write_small_store(tmp_path_factory.mktemp("stores") / "encoded", 4, 2, layout="encoded")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> PreparedStore:
    return write_small_store(tmp_path_factory.mktemp("stores") / "dense", 4, 2)


def photograph(number: int, height: int, width: int) -> Image:
    image = IMAGES[number]
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def test_encoded_store_equals_dense_store_up_to_jpeg_loss(store: PreparedStore, dense: PreparedStore) -> None:
    store.verify()
    for name in ("train", "test"):
        encoded, plain = store.split(name), dense.split(name)
        np.testing.assert_array_equal(encoded.labels, plain.labels)
        np.testing.assert_array_equal(encoded.usable, plain.usable)
        np.testing.assert_array_equal(store.quality(name), dense.quality(name))
        np.testing.assert_array_equal(encoded.masks[:], plain.masks)
        difference = encoded.images[:].astype(float) - plain.images
        assert np.sqrt(np.mean(difference**2)) < 8  # of 255; chroma has half the resolution
        assert np.abs(difference.mean((0, 1, 2))).max() < 0.5
    np.testing.assert_allclose(store.channel_mean, dense.channel_mean, atol=0.002)
    np.testing.assert_allclose(store.channel_std, dense.channel_std, atol=0.01)
    assert (store.classes, store.image_size) == (dense.classes, dense.image_size)


def test_decoded_rows_are_indexed_like_an_array(store: PreparedStore) -> None:
    images = store.split("train").images
    assert isinstance(images, Decoded)
    assert images.shape == (40, 32, 32, 3)
    whole = images[:]
    rows = np.array([7, 3, 3, 39, 0])
    np.testing.assert_array_equal(images[rows], whole[rows])
    np.testing.assert_array_equal(images[5:30:7], whole[5:30:7])
    np.testing.assert_array_equal(images[-1], whole[39])
    assert images[np.zeros(0, np.int64)].shape == (0, 32, 32, 3)
    with pytest.raises(IndexError):
        images[40]


@pytest.mark.parametrize("size", [(24, 24), (64, 64), (100, 100), (48, 32)])
@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (131, 70)])
def test_centre_of_image_and_mask_is_resized_to_the_requested_size(
    size: tuple[int, int], shape: tuple[int, int]
) -> None:
    """Compare with OpenCV's resize of the same crop."""
    image = photograph(101, *shape)
    mask = image[..., 1] > 120
    scale = min(shape[0] / size[0], shape[1] / size[1])
    height, width = round(size[0] * scale), round(size[1] * scale)
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    interpolation = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    crop = image[top : top + height, left : left + width]
    expected = cv2.resize(crop, size[::-1], interpolation=interpolation).astype(float)

    pixels = decode_image(encode_image(image), size)
    bits = np.unpackbits(decode_mask(encode_mask(mask), size), count=size[0] * size[1]).reshape(size)

    assert pixels.shape == (*size, 3)
    assert np.sqrt(np.mean((pixels - expected) ** 2)) < 8
    expected_mask = cv2.resize(
        mask[top : top + height, left : left + width] * np.uint8(255), size[::-1], interpolation=interpolation
    )
    assert (bits == (expected_mask > 127)).mean() > 0.97


def test_images_of_different_sizes_are_read_at_the_requested_size(tmp_path: Path) -> None:
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
    with PillowImage.open(tmp_path / "train_records_00000.bin") as image:
        assert image.size == (80, 40)


def test_dense_store_rejects_another_image_size(dense: PreparedStore) -> None:
    assert PreparedStore.open(dense.path, 32).image_size == (32, 32)
    with pytest.raises(PsysError, match="holds images of 32 x 32 pixels only: prepare another store for 24"):
        PreparedStore.open(dense.path, 24)


def test_store_with_several_record_files_is_independent_of_batching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "RECORD_FILE_BYTES", 5000)
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


def edit_index(path: Path, row: int, column: int, value: int) -> None:
    index = np.load(path / f"train_{INDEX}.npy", mmap_mode="r+")
    index[row, column] = value
    index.flush()


@pytest.mark.parametrize(
    ("column", "value"), [(0, -1), (0, 1), (1, -5), (1, 2**62), (1, 10**6), (2, 2**40), (2, -1), (3, 10**6)]
)
def test_index_outside_the_record_files_is_rejected(
    store: PreparedStore, tmp_path: Path, column: int, value: int
) -> None:
    path = shutil.copytree(store.path, tmp_path / "store")
    edit_index(path, 4, column, value)
    with pytest.raises(PsysError, match=r"train_index\.npy points outside the record files"):
        PreparedStore.open(path)


def test_record_that_is_not_an_image_is_rejected(store: PreparedStore, tmp_path: Path) -> None:
    path = shutil.copytree(store.path, tmp_path / "store")
    edit_index(path, 4, 1, 9)
    split = PreparedStore.open(path).split("train")
    with pytest.raises(PsysError, match=r"train_records_00000\.bin: the image at byte 9 cannot be decoded"):
        split.images[:]
    with pytest.raises(PsysError, match="cannot be decoded"):
        split.masks[np.array([4])]
    split.images[:4]


def test_record_with_too_many_pixels_is_not_decoded() -> None:
    data = bytearray(encode_image(photograph(0, 32, 32)))
    at = data.index(b"\xff\xc0") + 5
    for side, message in ((9000, "more than 67,108,864 pixels"), (60_000, "could be decompression bomb")):
        data[at : at + 4] = side.to_bytes(2) * 2
        with pytest.raises((ValueError, PillowImage.DecompressionBombError), match=message):
            decode_image(bytes(data), (32, 32))

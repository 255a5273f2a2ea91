"""Damaged and crafted image files: each is decoded or rejected with one clear error, within limits."""

import struct
import zlib
from pathlib import Path
from random import Random

import cv2
import numpy as np
import pytest

from psys.data.reference import FILE_BYTES
from psys.data.sample import read_sample
from psys.segment.task import Failure, ImageTask, Recipe, prepare_images
from tests.support.images import encoded, pixels_of, read_image
from tests.support.mutations import count_rejected, damaged, peak_memory_bytes

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Real images in the usual formats, mostly JPEG and PNG, one of them progressive and one with transparency."""
    images = [*pixels_of(read_sample().test)[::150]]
    transparent = np.concatenate([images[0], images[1][..., :1]], axis=2)
    return [
        *(encoded(image, ".jpg") for image in images),
        encoded(images[0], ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        *(encoded(image, ".png") for image in (*images, transparent)),
        *(encoded(images[2], suffix) for suffix in (".bmp", ".gif", ".ppm", ".tiff", ".webp")),
    ]


def test_damaged_images_are_read_or_rejected(tmp_path: Path, pictures: list[bytes]) -> None:
    file = tmp_path / "picture"

    def attempt(random: Random) -> None:
        file.write_bytes(damaged(random.choice(pictures), random))
        image = read_image(file)
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert image.dtype == np.uint8

    assert count_rejected(400, 3, attempt, file, ValueError) > 250


def with_huge_header(suffix: str) -> bytes:
    """A small file whose header declares 3.6 billion pixels."""
    data = encoded(pixels_of(read_sample().test)[0], suffix)
    match suffix:
        case ".png":
            header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + data[24:29]
            return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
        case ".jpg":
            at = data.index(b"\xff\xc0") + 5
            return data[:at] + struct.pack(">HH", 60_000, 60_000) + data[at + 4 :]
        case ".bmp":
            return data[:18] + struct.pack("<ii", 60_000, 60_000) + data[26:]
        case ".gif":
            return data[:6] + struct.pack("<HH", 60_000, 60_000) + data[10:]
    return b"P6\n60000 60000\n255\n" + data


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".ppm"])
def test_image_with_too_many_pixels_is_not_decoded(tmp_path: Path, suffix: str) -> None:
    image = tmp_path / f"image{suffix}"
    image.write_bytes(with_huge_header(suffix))
    before = peak_memory_bytes()

    prepared = prepare_images(ImageTask((image,)), Recipe(32))

    assert prepared.failures == (Failure(0, "more pixels than OPENCV_IO_MAX_IMAGE_PIXELS=67108864 allows"),)
    assert peak_memory_bytes() - before < 100e6


def test_jpeg_with_too_many_scans_is_rejected(tmp_path: Path, pictures: list[bytes]) -> None:
    progressive = next(data for data in pictures if data.count(b"\xff\xda") > 5)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    (tmp_path / "slow.jpg").write_bytes(progressive[:-2] + last * 200 + b"\xff\xd9")

    with pytest.raises(ValueError, match="a JPEG of more than 100 scans"):
        read_image(tmp_path / "slow.jpg")


def test_image_file_with_too_many_bytes_is_rejected(tmp_path: Path) -> None:
    with (tmp_path / "large.bmp").open("wb") as file:
        file.truncate(FILE_BYTES + 1)

    with pytest.raises(ValueError, match="more than 268,435,456 bytes"):
        read_image(tmp_path / "large.bmp")

"""Decoding photographs of all formats, orientations and sizes to upright pixels."""

import io
import resource
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from psys.data.sample import read_sample
from psys.segment.boxes import oriented
from psys.segment.decode import decode_upright
from psys.segment.grabcut import Box
from psys.segment.huge import decode_huge_png
from tests.support.images import pixels_of
from tests.support.photographs import (
    BROKEN,
    HUGE,
    KINDS,
    MAX_DIFFERENCE,
    closest_orientation,
    expected,
    huge_original,
    make,
    original,
)

COUNT = 4 + 8 * len(KINDS)  # every kind in every orientation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    make(folder, COUNT, huge_side=9_000)
    return folder


def test_every_format_is_decoded_upright_from_every_orientation(folder: Path) -> None:
    for row in range(COUNT - 4):
        pixels, kind, orientation, label = original(row)
        file = folder / f"class{label}" / f"{row:05d}-{kind}-{orientation}{KINDS[kind]}"

        image, _ = decode_upright(file.read_bytes())

        assert image.shape == pixels.shape, file.name
        found, difference = closest_orientation(expected(image, 64), expected(pixels, 64))
        assert (found, difference < MAX_DIFFERENCE) == (1, True), f"{file.name}: orientation {found}, {difference:.1f}"
        if "jpeg" not in kind and kind not in ("webp", "png-palette"):
            np.testing.assert_array_equal(image, pixels, err_msg=file.name)


def test_box_is_oriented_with_its_photograph(folder: Path) -> None:
    box = Box(10, 5, 40, 30)
    for row in range(0, COUNT - 4, 5):
        pixels, kind, orientation, label = original(row)
        height, width = pixels.shape[:2] if orientation < 5 else pixels.shape[1::-1]
        data = (folder / f"class{label}" / f"{row:05d}-{kind}-{orientation}{KINDS[kind]}").read_bytes()

        assert decode_upright(data, box)[1] == oriented(box, orientation, width, height)


def test_huge_jpeg_is_reduced_during_decoding(folder: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    image, box = decode_upright((folder / "class0" / HUGE).read_bytes(), Box(0, 900, 9000, 1801))

    assert image.shape == (4500, 4500, 3)
    assert box == Box(0, 450, 4500, 901)
    assert closest_orientation(expected(image, 32), np.dstack([huge_original()] * 3))[0] == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300e3  # KB


@pytest.mark.parametrize(("name", "reason"), BROKEN.items())
def test_broken_photograph_is_rejected(folder: Path, name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_upright((folder / "class0" / name).read_bytes())


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"MM",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 274, 3, 1, 9, 0),
    ],
)
def test_damaged_exif_block_is_ignored(exif: bytes) -> None:
    stored = pixels_of(read_sample().test)[3]
    kinds, blocks = [cv2.IMAGE_METADATA_EXIF], [np.frombuffer(exif, np.uint8)]
    data = cv2.imencodeWithMetadata(".png", stored[..., ::-1], kinds, blocks)[1].tobytes()

    np.testing.assert_array_equal(decode_upright(data)[0], stored)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "I;16"])
def test_png_decoded_in_bands_equals_the_reduced_png(mode: str) -> None:
    pixels, *_ = original(6)
    height, width = (side - side % 4 for side in pixels.shape[:2])
    if mode == "I;16":
        data = cv2.imencode(".png", pixels[..., 0].astype(np.uint16) * 201)[1].tobytes()
    else:
        picture = Image.fromarray(pixels)
        picture = picture.quantize(100) if mode == "P" else picture.convert(mode)
        if mode == "RGBA":
            picture.putalpha(Image.fromarray(pixels[..., 1]))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        data = buffer.getvalue()
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    whole = decoded[:height, :width]

    reduced = decode_huge_png(data, 4, band_pixels=40 * width)

    expected_pixels = cv2.resize(whole, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(reduced, expected_pixels)


def test_huge_png_is_reduced_and_truncation_is_found() -> None:
    """80 million pixels with a bright corner and an EXIF orientation, complete and truncated."""
    pixels = np.zeros((8_000, 10_000), np.uint8)
    pixels[:4_000, :5_000] = 200
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, 6, 0, 0)
    kinds, blocks = [cv2.IMAGE_METADATA_EXIF], [np.frombuffer(tiff, np.uint8)]
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    data = cv2.imencodeWithMetadata(".png", pixels, kinds, blocks, fast)[1].tobytes()

    image, box = decode_upright(data, Box(0, 0, 5_000, 4_000))

    assert image.shape == (5_000, 4_000, 3)
    assert box == Box(2_000, 0, 4_000, 2_500)
    assert (image[:2_500, 2_000:] == 200).all()
    assert not image[2_500:].any()
    cut = data[: len(data) // 2] + data[-12:]
    with pytest.raises(ValueError, match=r"ends too early|damaged"):
        decode_upright(cut)

import io
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from psys.data.sample import read_sample
from psys.data.store import StoreLayout
from psys.segment.grabcut import Box, segment
from psys.segment.task import Failure, ImageTask, Prepared, Recipe, prepare_images
from tests.support.images import Image, Mask, pixels_of, read_image


@pytest.fixture(scope="module")
def image() -> Image:
    """A real image, enlarged to 32 x 64 pixels."""
    return np.asarray(cv2.resize(pixels_of(read_sample().test)[101], (64, 32), interpolation=cv2.INTER_CUBIC), np.uint8)


def saved(path: Path, pixels: NDArray[Any], *options: int) -> Path:
    assert cv2.imwrite(str(path), pixels, list(options))
    return path


def bgr(image: Image) -> Image:
    return np.ascontiguousarray(image[..., ::-1])


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm", ".webp"])
def test_lossless_files_are_read_exactly(tmp_path: Path, image: Image, suffix: str) -> None:
    options = (cv2.IMWRITE_WEBP_QUALITY, 101) if suffix == ".webp" else ()

    np.testing.assert_array_equal(read_image(saved(tmp_path / f"x{suffix}", bgr(image), *options)), image)


def test_grey_is_repeated_in_three_channels(tmp_path: Path, image: Image) -> None:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)

    np.testing.assert_array_equal(read_image(saved(tmp_path / "x.png", grey)), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparency_is_blended_with_white(
    tmp_path: Path, image: Image, dtype: type[np.uint8] | type[np.uint16]
) -> None:
    top = np.iinfo(dtype).max
    opacity = np.full((*image.shape[:2], 1), top, dtype)
    opacity[:, :32] = 0
    pixels = np.concatenate([bgr(image).astype(dtype) * (top // 255), opacity], axis=2)

    read = read_image(saved(tmp_path / "x.png", pixels))

    assert (read[:, :32] == 255).all()
    np.testing.assert_array_equal(read[:, 32:], image[:, 32:])


def test_exif_orientation_is_applied(tmp_path: Path, image: Image) -> None:
    jpeg = saved(tmp_path / "x.jpg", bgr(image), cv2.IMWRITE_JPEG_QUALITY, 95)
    upright = read_image(jpeg)
    # An EXIF block with one entry: orientation (0x0112) 6, rotate by 90 degrees clockwise.
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    data = jpeg.read_bytes()
    jpeg.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])

    np.testing.assert_array_equal(read_image(jpeg), np.rot90(upright, -1))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated_file_is_rejected(tmp_path: Path, image: Image, suffix: str) -> None:
    whole = saved(tmp_path / f"x{suffix}", bgr(image)).read_bytes()
    for cut in (len(whole) // 2, len(whole) - 10):
        (tmp_path / "cut").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="ends too early"):
            read_image(tmp_path / "cut")


def test_unreadable_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    for name, message in [("empty.png", "empty"), ("text.png", "not an image"), ("nowhere.png", "No such file")]:
        with pytest.raises(ValueError, match=message):
            read_image(tmp_path / name)


def test_images_in_memory_are_segmented() -> None:
    images = pixels_of(read_sample().test)[:6]

    prepared = prepare_images(ImageTask(images), Recipe(32))

    np.testing.assert_array_equal(prepared.images, images)
    assert prepared.rows.tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(prepared.masks[2], segment(images[2]))
    np.testing.assert_allclose(np.asarray(prepared.quality)[:, 0], np.asarray(prepared.masks).mean((1, 2)))
    assert prepared.failures == ()


def test_files_are_cropped_and_resized_and_failures_are_reported(tmp_path: Path, image: Image) -> None:
    good = saved(tmp_path / "good.png", bgr(image))
    bad = tmp_path / "bad.png"
    bad.write_text("no image")

    prepared = prepare_images(ImageTask((good, bad, good, tmp_path / "gone.png")), Recipe(16))

    centre = cv2.resize(image[:, 16:48], (16, 16), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(prepared.images, [centre, centre])
    assert prepared.rows.tolist() == [0, 2]
    assert np.shape(prepared.masks) == (2, 16, 16)
    assert prepared.failures == (
        Failure(1, "not an image in a format that OpenCV can decode"),
        Failure(3, "No such file or directory", permanent=False),
    )


def test_encoded_layout_keeps_the_whole_image(tmp_path: Path, image: Image) -> None:
    file = saved(tmp_path / "wide.png", bgr(image))

    prepared = prepare_images(ImageTask((file,)), Recipe(16, "encoded"))

    for column in (prepared.images, prepared.masks):
        with PillowImage.open(io.BytesIO(bytes(column[0]))) as picture:
            assert picture.size == (32, 16)


@pytest.mark.parametrize("layout", ["dense", "encoded"])
def test_result_without_readable_images_is_empty(tmp_path: Path, layout: StoreLayout) -> None:
    prepared = prepare_images(ImageTask((tmp_path / "gone.png",)), Recipe(32, layout))

    assert len(prepared.images) == len(prepared.masks) == len(prepared.quality) == len(prepared.rows) == 0
    assert len(prepared.failures) == 1


@pytest.mark.parametrize("layout", ["dense", "encoded"])
def test_joined_parts_equal_the_whole_task(tmp_path: Path, layout: StoreLayout) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    good = [saved(tmp_path / f"{row}.png", bgr(pixels_of(read_sample().test)[row])) for row in range(3)]
    task, recipe = ImageTask((good[0], bad, good[1], good[2])), Recipe(32, layout)

    whole = prepare_images(task, recipe)
    joined = Prepared.joined({row: prepare_images(task.row(row), recipe) for row in (3, 1, 0, 2)})

    assert joined.failures == whole.failures
    for name in ("rows", "images", "masks", "quality"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))


def test_box_is_cropped_with_its_image(tmp_path: Path, image: Image) -> None:
    """Boxes inside and larger than the centred square, outside the square, and outside the image."""
    file = saved(tmp_path / "wide.png", bgr(image))

    def mask(*sides: int) -> Mask:
        prepared = prepare_images(ImageTask((file,), (Box(*sides),)), Recipe(32))
        assert prepared.failures == ()
        return np.asarray(prepared.masks[0], np.bool_)

    np.testing.assert_array_equal(mask(32, 4, 46, 28), segment(image[:, 16:48], box=Box(16, 4, 30, 28)))
    np.testing.assert_array_equal(mask(0, 0, 64, 32), segment(image[:, 16:48], box=Box(0, 0, 32, 32)))
    assert not mask(2, 4, 14, 28).any()
    outside = prepare_images(ImageTask((file,), (Box(70, 4, 90, 20),)), Recipe(32))
    assert outside.failures == (Failure(0, "its box (70, 4, 90, 20) lies outside its 64 x 32 pixels"),)

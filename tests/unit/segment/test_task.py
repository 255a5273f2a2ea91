import struct

import cv2
import numpy as np
import pytest

from psys.data.sample import read_sample
from psys.segment.grabcut import Box, segment
from psys.segment.task import Failure, ImageTask, Prepared, Recipe, prepare_images
from tests.support.images import read_image


@pytest.fixture(scope="module")
def image():
    """A real image, enlarged, twice as wide as high."""
    return cv2.resize(read_sample().test.images[101], (64, 32), interpolation=cv2.INTER_CUBIC)


def saved(path, pixels, *options):
    assert cv2.imwrite(str(path), pixels, list(options))
    return path


def bgr(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR)


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
    # An EXIF block with one entry: orientation (0x0112) 6, "turn a quarter clockwise to see it".
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
    images = read_sample().test.images[:6]

    done = prepare_images(ImageTask(images), Recipe(32))

    np.testing.assert_array_equal(done.images, images)
    assert done.rows.tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(done.masks[2], segment(images[2]))
    np.testing.assert_allclose(done.quality[:, 0], done.masks.mean((1, 2)))
    assert done.failures == ()


def test_files_are_cropped_and_resized_and_failures_are_reported(tmp_path: Path, image: Image) -> None:
    good = saved(tmp_path / "good.png", bgr(image))
    bad = tmp_path / "bad.png"
    bad.write_text("no image")

    done = prepare_images(ImageTask((good, bad, good, tmp_path / "gone.png")), Recipe(16))

    middle = cv2.resize(image[:, 16:48], (16, 16), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(done.images, [middle, middle])
    assert done.rows.tolist() == [0, 2]
    assert done.masks.shape == (2, 16, 16)
    assert done.failures == (
        Failure(1, "not an image in a format that OpenCV can decode"),
        Failure(3, "No such file or directory", permanent=False),
    )


def test_encoded_layout_keeps_the_whole_image(tmp_path: Path, image: Image) -> None:
    file = saved(tmp_path / "wide.png", bgr(image))

    done = prepare_images(ImageTask((file,)), Recipe(16, "encoded"))

    assert cv2.imdecode(np.frombuffer(done.images[0], np.uint8), 1).shape == (16, 32, 3)
    assert cv2.imdecode(np.frombuffer(done.masks[0], np.uint8), -1).shape == (16, 32)


@pytest.mark.parametrize("layout", ["dense", "encoded"])
def test_result_without_readable_images_is_empty(tmp_path: Path, layout: str) -> None:
    done = prepare_images(ImageTask((tmp_path / "gone.png",)), Recipe(32, layout))

    assert len(done.images) == len(done.masks) == len(done.quality) == len(done.rows) == 0
    assert len(done.failures) == 1


@pytest.mark.parametrize("layout", ["dense", "encoded"])
def test_joined_parts_equal_the_whole_task(tmp_path: Path, layout: str) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    good = [saved(tmp_path / f"{row}.png", bgr(read_sample().test.images[row])) for row in range(3)]
    shard, recipe = ImageTask((good[0], bad, good[1], good[2])), Recipe(32, layout)

    whole = prepare_images(shard, recipe)
    joined = Prepared.joined({row: prepare_images(shard.row(row), recipe) for row in (3, 1, 0, 2)})

    assert joined.failures == whole.failures
    for name in ("rows", "images", "masks", "quality"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))


def test_box_is_cropped_with_its_image(tmp_path: Path, image: Image) -> None:
    """The object is known to stand in the right half of the middle square; and once outside of it, and of the image."""
    file = saved(tmp_path / "wide.png", bgr(image))

    def mask(*sides: int) -> np.ndarray:
        done = prepare_images(ImageTask((file,), (Box(*sides),)), Recipe(32))
        assert done.failures == ()
        return done.masks[0]

    np.testing.assert_array_equal(mask(32, 4, 46, 28), segment(image[:, 16:48], box=Box(16, 4, 30, 28)))
    np.testing.assert_array_equal(mask(0, 0, 64, 32), segment(image[:, 16:48], box=Box(0, 0, 32, 32)))
    assert not mask(2, 4, 14, 28).any()
    outside = prepare_images(ImageTask((file,), (Box(70, 4, 90, 20),)), Recipe(32))
    assert outside.failures == (Failure(0, "its box (70, 4, 90, 20) lies outside its 64 x 32 pixels"),)

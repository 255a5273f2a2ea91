import struct

import cv2
import numpy as np
import pytest

from psys.data.sample import read_sample
from psys.segment.grabcut import segment
from psys.segment.quality import GateConfig
from psys.segment.shard import Shard, prepare_shard, read_image


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
def test_lossless_files_are_read_exactly_as_rgb(tmp_path, image, suffix):
    options = (cv2.IMWRITE_WEBP_QUALITY, 101) if suffix == ".webp" else ()

    np.testing.assert_array_equal(read_image(saved(tmp_path / f"x{suffix}", bgr(image), *options)), image)


def test_grey_is_repeated(tmp_path, image):
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)

    np.testing.assert_array_equal(read_image(saved(tmp_path / "x.png", grey)), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparency_is_laid_on_white(tmp_path, image, dtype):
    top = np.iinfo(dtype).max
    opacity = np.full((*image.shape[:2], 1), top, dtype)
    opacity[:, :32] = 0
    pixels = np.concatenate([bgr(image).astype(dtype) * (top // 255), opacity], axis=2)

    read = read_image(saved(tmp_path / "x.png", pixels))

    assert (read[:, :32] == 255).all()
    np.testing.assert_array_equal(read[:, 32:], image[:, 32:])


def test_a_turned_photograph_is_set_upright(tmp_path, image):
    jpeg = saved(tmp_path / "x.jpg", bgr(image), cv2.IMWRITE_JPEG_QUALITY, 95)
    upright = read_image(jpeg)
    # An EXIF block with one entry: orientation (0x0112) 6, "turn a quarter clockwise to see it".
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    data = jpeg.read_bytes()
    jpeg.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])

    np.testing.assert_array_equal(read_image(jpeg), np.rot90(upright, -1))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_file_that_ends_too_early_is_refused(tmp_path, image, suffix):
    whole = saved(tmp_path / f"x{suffix}", bgr(image)).read_bytes()
    for cut in (len(whole) // 2, len(whole) - 10):
        (tmp_path / "cut").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="ends too early"):
            read_image(tmp_path / "cut")


def test_other_unreadable_files_are_refused(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    for name, message in [("empty.png", "empty"), ("text.png", "not an image"), ("nowhere.png", "No such file")]:
        with pytest.raises(ValueError, match=message):
            read_image(tmp_path / name)


def test_images_in_memory_are_kept_and_segmented():
    split = read_sample().test
    shard = Shard("test", split.images[:6], split.labels[:6])

    done = prepare_shard(shard, 32, GateConfig())

    np.testing.assert_array_equal(done.images, split.images[:6])
    np.testing.assert_array_equal(done.labels, split.labels[:6])
    np.testing.assert_array_equal(done.masks[2], segment(split.images[2]))
    np.testing.assert_allclose(done.quality[:, 0], done.masks.mean((1, 2)))
    assert done.unreadable == ()


def test_files_are_cropped_resized_and_the_unreadable_ones_reported(tmp_path, image):
    good = saved(tmp_path / "good.png", bgr(image))
    bad = tmp_path / "bad.png"
    bad.write_text("no image")

    done = prepare_shard(Shard("train", (good, bad, good), np.array([4, 5, 6])), 16, GateConfig())

    middle = cv2.resize(image[:, 16:48], (16, 16), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(done.images, [middle, middle])
    assert done.labels.tolist() == [4, 6]
    assert done.masks.shape == (2, 16, 16)
    assert done.unreadable == ((str(bad), "not an image, or of a format that OpenCV cannot decode"),)


def test_a_shard_with_nothing_readable_is_empty(tmp_path):
    done = prepare_shard(Shard("train", (tmp_path / "gone.png",), np.array([0])), 32, GateConfig())

    assert done.images.shape == (0, 32, 32, 3)
    assert done.masks.shape == (0, 32, 32)
    assert len(done.quality) == len(done.usable) == len(done.labels) == 0
    assert len(done.unreadable) == 1

import gzip
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from psys.data.cifar import CLASSES, read_cifar
from psys.data.dataset import DatasetSplit
from psys.errors import PsysError
from tests.support.cifar import pack, pickled_by_python_2, python_batch
from tests.support.images import pixels_of


@pytest.mark.parametrize("layout", ["py", "bin"])
@pytest.mark.parametrize("form", ["folder", "folder above", "archive"])
def test_both_formats_are_read_from_folders_and_archives(
    cifar_folder: Callable[[str], Path], sixty: DatasetSplit, tmp_path: Path, layout: str, form: str
) -> None:
    folder = cifar_folder(layout)
    path = {"folder": folder, "folder above": tmp_path}.get(form) or pack(folder, tmp_path / "cifar-10.tar.gz")

    dataset = read_cifar(path)

    assert dataset.classes == CLASSES
    np.testing.assert_array_equal(dataset.train.images, pixels_of(sixty)[:50])
    np.testing.assert_array_equal(dataset.train.labels, sixty.labels[:50])
    np.testing.assert_array_equal(dataset.test.images, pixels_of(sixty)[50:])
    np.testing.assert_array_equal(dataset.test.labels, sixty.labels[50:])


def test_batch_pickled_by_python_3_is_read(cifar_folder: Callable[[str], Path], sixty: DatasetSplit) -> None:
    folder = cifar_folder("py")
    pixels = pixels_of(sixty)[:10].transpose(0, 3, 1, 2).reshape(10, -1)
    (folder / "data_batch_1").write_bytes(
        pickle.dumps({b"data": pixels, b"labels": sixty.labels[:10].tolist()}, protocol=2)
    )

    np.testing.assert_array_equal(read_cifar(folder).train.images[:10], pixels_of(sixty)[:10])


@pytest.mark.parametrize(("layout", "name"), [("py", "data_batch_3"), ("bin", "test_batch.bin")])
def test_truncated_batch_is_rejected(cifar_folder: Callable[[str], Path], layout: str, name: str) -> None:
    folder = cifar_folder(layout)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2 + 1])

    with pytest.raises(PsysError, match=name):
        read_cifar(folder)


def test_batch_with_fewer_images_is_rejected(cifar_folder: Callable[[str], Path]) -> None:
    folder = cifar_folder("bin")
    (folder / "data_batch_5.bin").write_bytes((folder / "data_batch_5.bin").read_bytes()[: 7 * 3073])

    with pytest.raises(PsysError, match=r"data_batch_5\.bin\) has 7 images, other batches have 10"):
        read_cifar(folder)


def test_missing_batch_is_rejected(cifar_folder: Callable[[str], Path]) -> None:
    folder = cifar_folder("bin")
    (folder / "data_batch_4.bin").unlink()

    with pytest.raises(PsysError, match=r"no data_batch_4\.bin"):
        read_cifar(folder)


def test_truncated_archive_is_rejected(cifar_folder: Callable[[str], Path], tmp_path: Path) -> None:
    archive = pack(cifar_folder("bin"), tmp_path / "cut.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-20_000])

    with pytest.raises(PsysError, match=r"cut\.tar\.gz is not a complete tar archive"):
        read_cifar(archive)


def test_archive_with_wrong_checksum_is_rejected(cifar_folder: Callable[[str], Path], tmp_path: Path) -> None:
    archive = pack(cifar_folder("bin"), tmp_path / "broken.tar.gz")
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 0xFF
    archive.write_bytes(data)

    with pytest.raises(PsysError, match=r"broken\.tar\.gz"):
        read_cifar(archive)


class _Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch owned",)


def test_pickle_that_calls_a_function_is_rejected(
    cifar_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = cifar_folder("py")
    (folder / "data_batch_2").write_bytes(pickle.dumps({b"data": _Malicious(), b"labels": []}, protocol=2))

    with pytest.raises(PsysError, match=r"data_batch_2\) .* refers to posix\.system"):
        read_cifar(folder)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "batch",
    [
        {b"labels": [1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
        {b"data": np.zeros((1, 3072), np.float32), b"labels": [1]},
        {b"data": np.zeros((1, 1024), np.uint8), b"labels": [1]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": ["cat"]},
        [1, 2],
    ],
)
def test_batch_with_wrong_content_is_rejected(cifar_folder: Callable[[str], Path], batch: object) -> None:
    folder = cifar_folder("py")
    (folder / "test_batch").write_bytes(pickled_by_python_2(batch))

    with pytest.raises(PsysError, match="test_batch"):
        read_cifar(folder)


def test_gzip_without_a_tar_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(b"no archive at all" * 100))

    with pytest.raises(PsysError, match=r"x\.tar\.gz"):
        read_cifar(tmp_path / "x.tar.gz")


def test_test_batches_are_pickled_like_the_published_ones(sixty: DatasetSplit) -> None:
    data = python_batch(pixels_of(sixty)[:2], sixty.labels[:2])

    assert data[:2] == b"\x80\x02"
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in data
    assert b"_codecs" not in data

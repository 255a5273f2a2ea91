import gzip
import os
import pickle

import numpy as np
import pytest

from psys.data.cifar import CLASSES, read_cifar
from psys.errors import PsysError
from tests.support.cifar import pack, pickled_by_python_2, python_batch


@pytest.mark.parametrize("layout", ["py", "bin"])
@pytest.mark.parametrize("form", ["folder", "folder above", "archive"])
def test_both_layouts_are_read_from_folders_and_archives(cifar_folder, sixty, tmp_path, layout, form):
    folder = cifar_folder(layout)
    path = {"folder": folder, "folder above": tmp_path}.get(form) or pack(folder, tmp_path / "cifar-10.tar.gz")

    dataset = read_cifar(path)

    assert dataset.classes == CLASSES
    np.testing.assert_array_equal(dataset.train.images, sixty.images[:50])
    np.testing.assert_array_equal(dataset.train.labels, sixty.labels[:50])
    np.testing.assert_array_equal(dataset.test.images, sixty.images[50:])
    np.testing.assert_array_equal(dataset.test.labels, sixty.labels[50:])


def test_a_batch_pickled_by_python_3_is_read_too(cifar_folder, sixty):
    folder = cifar_folder("py")
    pixels = sixty.images[:10].transpose(0, 3, 1, 2).reshape(10, -1)
    (folder / "data_batch_1").write_bytes(
        pickle.dumps({b"data": pixels, b"labels": sixty.labels[:10].tolist()}, protocol=2)
    )

    np.testing.assert_array_equal(read_cifar(folder).train.images[:10], sixty.images[:10])


@pytest.mark.parametrize(("layout", "name"), [("py", "data_batch_3"), ("bin", "test_batch.bin")])
def test_a_truncated_batch_is_named(cifar_folder, layout, name):
    folder = cifar_folder(layout)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2 + 1])

    with pytest.raises(PsysError, match=name):
        read_cifar(folder)


def test_a_batch_that_ends_between_two_images_is_named(cifar_folder):
    folder = cifar_folder("bin")
    (folder / "data_batch_5.bin").write_bytes((folder / "data_batch_5.bin").read_bytes()[: 7 * 3073])

    with pytest.raises(PsysError, match=r"data_batch_5\.bin\) has 7 images, other batches have 10"):
        read_cifar(folder)


def test_a_missing_batch_is_named(cifar_folder):
    folder = cifar_folder("bin")
    (folder / "data_batch_4.bin").unlink()

    with pytest.raises(PsysError, match=r"no data_batch_4\.bin"):
        read_cifar(folder)


def test_a_truncated_archive_is_named(cifar_folder, tmp_path):
    archive = pack(cifar_folder("bin"), tmp_path / "cut.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-20_000])

    with pytest.raises(PsysError, match=r"cut\.tar\.gz is not a complete tar archive"):
        read_cifar(archive)


def test_an_archive_with_a_broken_checksum_is_refused(cifar_folder, tmp_path):
    archive = pack(cifar_folder("bin"), tmp_path / "broken.tar.gz")
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 0xFF
    archive.write_bytes(data)

    with pytest.raises(PsysError, match=r"broken\.tar\.gz"):
        read_cifar(archive)


class _Malicious:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_a_pickle_that_wants_to_run_something_is_refused_by_name(cifar_folder, tmp_path, monkeypatch):
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
def test_a_batch_of_another_form_is_named(cifar_folder, batch):
    folder = cifar_folder("py")
    (folder / "test_batch").write_bytes(pickled_by_python_2(batch))

    with pytest.raises(PsysError, match="test_batch"):
        read_cifar(folder)


def test_a_gzip_that_is_no_tar_is_refused(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(b"no archive at all" * 100))

    with pytest.raises(PsysError, match=r"x\.tar\.gz"):
        read_cifar(tmp_path / "x.tar.gz")


def test_the_test_files_look_like_python_2s(sixty):
    data = python_batch(sixty.images[:2], sixty.labels[:2])

    assert data[:2] == b"\x80\x02"
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in data
    assert b"_codecs" not in data

"""Parquet files and tars of images as sources."""

import gzip
import json
import pickle
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from psys.data.dataset import Dataset, DatasetSplit
from psys.data.read import read_encoded
from psys.data.reference import Member, ParquetCell, References, Span
from psys.data.source import open_source
from psys.errors import PsysError
from tests.support.images import Image, encoded, read_image
from tests.support.packed import CLASSES, sample_images, samples, tar_bytes, write_parquet, write_tar

Writer = Callable[[Path], tuple[Image, NDArray[np.int64]]]


def opened(path: Path, share: float = 0.2) -> Dataset:
    return open_source(str(path), Path("datasets"), share, seed=0)


def references(split: DatasetSplit) -> References:
    assert isinstance(split.images, References)
    return split.images


def pixels(split: DatasetSplit) -> Image:
    return np.stack([read_image(reference) for reference in references(split)])


def parquet_splits(folder: Path) -> tuple[Image, NDArray[np.int64]]:
    """Write 60 training images in two files and 20 test images into data/."""
    images, labels = sample_images(8)
    data = [encoded(image) for image in images]
    for name, rows in (("train-00000-of-00002", slice(0, 35)), ("train-00001-of-00002", slice(35, 60))):
        write_parquet(folder / "data" / f"{name}.parquet", data[rows], labels[rows], rows=8)
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", data[60:], labels[60:])
    return images, labels


def tar_splits(folder: Path) -> tuple[Image, NDArray[np.int64]]:
    """Write the same images in tars."""
    images, labels = sample_images(8)
    for name, rows in (("train-000000", slice(0, 35)), ("train-000001", slice(35, 60)), ("test-000000", slice(60, 80))):
        write_tar(folder / f"{name}.tar", samples(images[rows], labels[rows]), mtime=1.5)
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return images, labels


@pytest.mark.parametrize("write", [parquet_splits, tar_splits])
def test_pixels_labels_and_classes_are_read_back(tmp_path: Path, write: Writer) -> None:
    images, labels = write(tmp_path / "pets")

    dataset = opened(tmp_path / "pets")

    assert (dataset.name, dataset.classes, dataset.root) == ("pets", CLASSES, tmp_path / "pets")
    np.testing.assert_array_equal(pixels(dataset.train), images[:60])
    np.testing.assert_array_equal(pixels(dataset.test), images[60:])
    np.testing.assert_array_equal(dataset.train.labels, labels[:60])
    np.testing.assert_array_equal(dataset.test.labels, labels[60:])


@pytest.mark.parametrize("write", [parquet_splits, tar_splits])
def test_references_are_picklable_and_read_in_any_order(tmp_path: Path, write: Writer) -> None:
    images, _ = write(tmp_path)
    chosen = references(opened(tmp_path).train)[5:50:9]
    assert len(pickle.dumps(chosen)) < 1000

    for order in ((0, 1, 2, 3, 4), (4, 0, 3, 3, 1)):
        for index in order:
            np.testing.assert_array_equal(read_image(chosen[index]), images[5 + 9 * index])


@pytest.mark.parametrize("write", [parquet_splits, tar_splits])
def test_fingerprint_depends_on_the_files_and_not_on_their_location(tmp_path: Path, write: Writer) -> None:
    write(tmp_path / "one")
    before = opened(tmp_path / "one").train.fingerprint(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    assert opened(tmp_path / "two").train.fingerprint(tmp_path / "two") == before

    file = sorted((tmp_path / "two").rglob("train*"))[0]
    shutil.copy2(file, file.with_name(f"train-00009{file.suffix}"))
    assert opened(tmp_path / "two").train.fingerprint(tmp_path / "two") != before


@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_share_of_each_class_of_a_single_file_is_held_out(tmp_path: Path, form: str) -> None:
    images, labels = sample_images(10)
    texts = [CLASSES[label] for label in labels]
    if form == "tar":
        file = write_tar(tmp_path / "all.tar", samples(images, texts, ".jpg", "folder/"))
    else:
        file = write_parquet(tmp_path / "all.parquet", [encoded(image, ".jpg") for image in images], texts, names=None)

    dataset = opened(file)

    assert (dataset.name, dataset.classes) == ("all", CLASSES)  # the sample's classes are sorted
    assert np.bincount(dataset.train.labels).tolist() == [8] * 10
    assert np.bincount(dataset.test.labels).tolist() == [2] * 10
    for split in (dataset.train, dataset.test):
        for image, label in zip(pixels(split)[::7], split.labels[::7], strict=True):
            same = np.abs(images.astype(int) - image).mean(axis=(1, 2, 3)).argmin()
            assert labels[same] == label


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
        ("imagenet1k-train-0000.parquet", "imagenet1k-val-00.parquet"),
        ("data/training.parquet", "data/eval.parquet"),
    ],
)
def test_splits_are_found_by_file_and_folder_names(tmp_path: Path, train: str, test: str) -> None:
    images, labels = sample_images(3)
    data = [encoded(image) for image in images]
    write_parquet(tmp_path / train, data[:20], labels[:20])
    write_parquet(tmp_path / test, data[20:], labels[20:])

    dataset = opened(tmp_path)

    assert (len(dataset.train.labels), len(dataset.test.labels)) == (20, 10)


def test_validation_replaces_a_test_set_without_labels(tmp_path: Path) -> None:
    images, labels = sample_images(3)
    data = [encoded(image) for image in images]
    write_parquet(tmp_path / "train.parquet", data[:20], labels[:20])
    write_parquet(tmp_path / "validation.parquet", data[20:], labels[20:])
    write_parquet(tmp_path / "test.parquet", data[:10], np.full(10, -1))

    np.testing.assert_array_equal(pixels(opened(tmp_path).test), images[20:])


def test_other_column_names_are_supported(tmp_path: Path) -> None:
    images, labels = sample_images(3)
    data = [encoded(image) for image in images]
    for columns, plain in ((("img", "fine_label"), False), (("jpg", "cls"), True)):
        file = write_parquet(tmp_path / "a.parquet", data, labels.astype(np.uint8), columns=columns, plain=plain)
        dataset = opened(file, 0.4)
        assert dataset.classes == CLASSES
        assert pixels(dataset.test).shape == (10, 32, 32, 3)


def test_integer_labels_without_names_are_class_names(tmp_path: Path) -> None:
    images, labels = sample_images(3, classes=3)
    dataset = opened(write_tar(tmp_path / "a.tar", samples(images, labels)), 0.4)
    assert dataset.classes == ("0", "1", "2")


def test_tar_with_long_names_extra_members_and_json_labels(tmp_path: Path) -> None:
    images, labels = sample_images(3)
    long = "class/" + "x" * 200
    members = [("readme.md", b"hello")]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        metadata = {"caption": "a picture", "label": CLASSES[label]}
        members += [(f"{long}{number}.PNG", encoded(image)), (f"{long}{number}.seg.png", b"another")]
        members += [(f"{long}{number}.json", json.dumps(metadata).encode())]
    path = tmp_path / "train.tar"
    for tar_format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path.write_bytes(tar_bytes(members, tar_format=tar_format))
        np.testing.assert_array_equal(np.sort(opened(path, 0.4).train.labels), np.repeat(range(10), 2))


def check_rejected(path: Path, message: str) -> None:
    with pytest.raises(PsysError, match=message) as raised:
        opened(path)
    assert "\n" not in str(raised.value)


def test_parquet_file_without_labelled_images_is_rejected(tmp_path: Path) -> None:
    images, labels = sample_images(2)
    data = [encoded(image) for image in images]
    whole = write_parquet(tmp_path / "whole.parquet", data, labels).read_bytes()
    file = tmp_path / "a.parquet"
    (tmp_path / "whole.parquet").unlink()
    for content in (b"", whole[:-20], whole[: len(whole) // 2], b"PAR1" + bytes(50) + b"PAR1"):
        file.write_bytes(content)
        check_rejected(file, r"a\.parquet is not a Parquet file of labelled images")

    write_parquet(file, data, labels, columns=("pixels", "target"))
    check_rejected(file, r"a\.parquet .*expected a column of labels \(label, .*\); it has pixels, target")
    write_parquet(file, data, [0.5] * 20)
    check_rejected(file, r"a\.parquet .*labels are double, expected integers or strings")
    write_parquet(file, data, [None, *labels[1:]])
    check_rejected(file, r"a\.parquet .*1 rows have no label")
    write_parquet(file, data, [-1, *labels[1:]])
    check_rejected(file, r"a\.parquet has labels outside its 10 classes: '-1'")
    write_parquet(file, data, [10, *labels[1:]])
    check_rejected(file, r"outside its 10 classes: '10'")
    write_parquet(file, data, [10**12, *labels[1:]], names=None)
    check_rejected(file, r"outside its 100001 classes: '1000000000000'")
    write_parquet(file, [], np.array([], np.int64))
    check_rejected(file, r"the Parquet files have no rows")
    write_parquet(file, data, labels, names=["a", "a"])
    check_rejected(file, r"a\.parquet has 2 class names, expected .* without duplicates")
    write_parquet(file, data, labels % 9)
    check_rejected(file, r"class '.*' has \d images: too few to hold out 20%")


def test_parquet_file_without_image_column_is_rejected(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}), tmp_path / "a.parquet")
    check_rejected(tmp_path / "a.parquet", r"expected a column image or img with bytes.*it has the columns text, label")
    two = {"a": pa.array([b"x", b"y"]), "b": pa.array([b"x", b"y"]), "label": [0, 1]}
    pq.write_table(pa.table(two), tmp_path / "a.parquet")
    check_rejected(tmp_path / "a.parquet", "or one such column")


def test_unreadable_row_does_not_affect_other_rows(tmp_path: Path) -> None:
    images, labels = sample_images(5)
    data = [None if number == 3 else encoded(image) for number, image in enumerate(images)]
    file = write_parquet(tmp_path / "train.parquet", data, labels)
    write_parquet(tmp_path / "test.parquet", data[10:20], labels[10:20])
    images_of_file = references(opened(tmp_path).train)

    with pytest.raises(ValueError, match="the row has no image"):
        read_image(images_of_file[3])
    np.testing.assert_array_equal(read_image(images_of_file[4]), images[4])
    assert str(images_of_file[3]) == f"{file} (row 3 of row group 0)"
    for key, message in ((ParquetCell(0, 99), "no row 99"), (ParquetCell(7, 0), "no row group 7")):
        with pytest.raises(ValueError, match=message):
            read_encoded(Member(file, key))
    with pytest.raises(ValueError, match="No such file"):
        read_encoded(Member(tmp_path / "gone.parquet", ParquetCell(0, 0)))


def test_damaged_or_compressed_tar_is_rejected(tmp_path: Path) -> None:
    images, labels = sample_images(2)
    whole = write_tar(tmp_path / "train.tar", samples(images, labels)).read_bytes()
    file = tmp_path / "train.tar"
    for content, message in (
        (whole[: len(whole) // 2], "claims|ends too early"),
        (whole[:4096], "ends too early"),
        (b"", "is not a tar"),
        (whole[:3000] + b"\xff" * 600 + whole[3600:], "not a complete WebDataset tar"),
    ):
        file.write_bytes(content)
        check_rejected(tmp_path, rf"train\.tar.*({message})")
    file.write_bytes(gzip.compress(whole))
    check_rejected(tmp_path, r"train\.tar is not a complete WebDataset tar|is not a tar")
    file.rename(tmp_path / "train.tar.gz")
    check_rejected(tmp_path, r"train\.tar\.gz is compressed, .* with gunzip")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x")], "sample a has no label: expected a.cls or a.json"),
        ([("a.png", b"x"), ("a.cls", b"\xff")], r"sample a has a \.cls that cannot be read"),
        ([("a.png", b"x"), ("a.cls", b" ")], r"sample a has a \.cls without a label"),
        ([("a.png", b"x"), ("a.json", b"[1]")], r"sample a has a \.json without a label"),
        ([("a.png", b"x"), ("a.json", b"[" * 9999)], r"sample a has a \.json that cannot be read"),
        ([("a.png", b"x"), ("a.json", b'{"label": [1]}')], r"\.json without a label"),
        ([("a.png", b"x"), ("a.cls", b"1" * (2**20 + 1))], "label of 1,048,577 bytes"),
        ([("a.png", b"x"), ("a.jpg", b"x"), ("a.cls", b"1")], "sample a has 2 images"),
        ([("a.png", b"x"), ("a.png", b"x"), ("a.cls", b"1")], "two members png"),
        ([("a.cls", b"1")], "has no sample with an image"),
        ([("a.png", b"x"), ("a.cls", b"1"), ("b.png", b"x"), ("b.cls", b"-1")], "outside its 2 classes: '-1'"),
        ([("a.png", b"x"), ("a.cls", b"cat"), ("b.png", b"x"), ("b.cls", b"cat")], "has 1 class"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_incomplete_sample_is_rejected(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    check_rejected(write_tar(tmp_path / "x.tar", members).parent, message)


def test_inconsistent_splits_and_classes_are_rejected(tmp_path: Path) -> None:
    images, labels = sample_images(2)
    write_tar(tmp_path / "test.tar", samples(images, labels))
    check_rejected(tmp_path, "has files for test but none for train")
    write_tar(tmp_path / "train.tar", samples(images, labels % 9))
    check_rejected(tmp_path, "class '9' has no image for train")
    write_tar(tmp_path / "more.tar", samples(images, labels))
    check_rejected(tmp_path, r"more\.tar names no split .*, but other files in .* do")
    (tmp_path / "more.tar").unlink()
    for names, message in (
        ("a\nb\n", "outside its 2 classes"),
        ("a\na\n", "without duplicates"),
        ("\n", "has 0 class names"),
    ):
        (tmp_path / "classes.txt").write_text(names)
        check_rejected(tmp_path, message)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "classes.json").write_text('{"a": 1}')
    check_rejected(tmp_path, r"classes\.json must be a list of strings")


def test_tar_truncated_after_indexing_is_reported(tmp_path: Path) -> None:
    images, labels = sample_images(2)
    file = write_tar(tmp_path / "a.tar", samples(images, labels))
    last = references(opened(file, 0.5).train)[-1]
    assert isinstance(last, Member)
    assert isinstance(last.key, Span)
    file.write_bytes(file.read_bytes()[: last.key.offset + 10])
    with pytest.raises(ValueError, match="the file ends too early"):
        read_image(last)


def test_error_without_pyarrow_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = sample_images(2)
    file = write_parquet(tmp_path / "a.parquet", [encoded(image) for image in images], labels)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "psys.data.parquet", raising=False)
    check_rejected(file, r"Parquet files need pyarrow: pip install 'psys\[parquet\]'")

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from psys.data.dataset import Dataset, DatasetSplit, read_dataset, write_dataset
from psys.data.reference import Files
from psys.data.sample import read_sample
from psys.data.source import open_source
from psys.errors import PsysError
from tests.support.images import pixels_of


def fill(folder: Path, count: int, suffix: str = ".png") -> None:
    """Write `count` real images into a new class folder."""
    folder.mkdir(parents=True)
    for number, image in enumerate(pixels_of(read_sample().test)[:count]):
        cv2.imwrite(str(folder / f"{number:03d}{suffix}"), image[..., ::-1])


def opened(path: Path, share: float = 0.2, seed: int = 0) -> Dataset:
    return open_source(str(path), Path("datasets"), share, seed)


def names(split: DatasetSplit) -> list[str]:
    assert isinstance(split.images, Files)
    return ["/".join(str(path).split(os.sep)[-2:]) for path in split.images]


def test_sample_is_opened_by_name() -> None:
    assert pixels_of(opened(Path("sample")).train).shape == (2000, 32, 32, 3)


def test_cifar_folder_is_detected(cifar_folder: Callable[[str], Path]) -> None:
    assert pixels_of(opened(cifar_folder("bin").parent).train).shape == (50, 32, 32, 3)


def test_fetched_dataset_is_opened_by_name_and_path(tmp_path: Path, sixty: DatasetSplit) -> None:
    split = DatasetSplit(sixty.images, sixty.labels)
    write_dataset(Dataset("cifar10", "a test", tmp_path, tuple("abcdefghij"), split, split), tmp_path / "cifar10")

    for dataset in (open_source("cifar10", tmp_path, 0.2, 0), opened(tmp_path / "cifar10")):
        np.testing.assert_array_equal(dataset.train.images, sixty.images)
        assert dataset.classes == tuple("abcdefghij")


def test_truncated_fetched_dataset_is_rejected(tmp_path: Path, sixty: DatasetSplit) -> None:
    split = DatasetSplit(sixty.images, sixty.labels)
    write_dataset(Dataset("cifar10", "a test", tmp_path, tuple("abcdefghij"), split, split), tmp_path / "cifar10")
    images = tmp_path / "cifar10" / "train_images.npy"
    images.write_bytes(images.read_bytes()[:-1])

    with pytest.raises(PsysError, match="not a complete dataset"):
        read_dataset(tmp_path / "cifar10")


def test_error_for_missing_cifar_says_how_to_fetch_it(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match="psys data fetch cifar10"):
        open_source("cifar10", tmp_path, 0.2, 0)


def test_class_folders_are_sorted_and_a_share_of_each_is_held_out(tmp_path: Path) -> None:
    fill(tmp_path / "zebra", 10)
    fill(tmp_path / "ape", 5, ".JPG")
    fill(tmp_path / ".hidden", 3)
    (tmp_path / "ape" / ".ds.png").touch()
    (tmp_path / "ape" / "readme.txt").touch()

    dataset = opened(tmp_path)

    assert dataset.classes == ("ape", "zebra")
    assert np.bincount(dataset.train.labels).tolist() == [4, 8]
    assert np.bincount(dataset.test.labels).tolist() == [1, 2]
    assert not set(names(dataset.train)) & set(names(dataset.test))
    for split in (dataset.train, dataset.test):
        assert [name.split("/")[0] for name in names(split)] == [dataset.classes[label] for label in split.labels]


def test_held_out_images_depend_on_the_seed(tmp_path: Path) -> None:
    fill(tmp_path / "a", 30)
    fill(tmp_path / "b", 30)

    assert names(opened(tmp_path, seed=1).test) == names(opened(tmp_path, seed=1).test)
    assert names(opened(tmp_path, seed=1).test) != names(opened(tmp_path, seed=2).test)


@pytest.mark.parametrize("test", ["test", "val"])
def test_train_and_test_folders_are_used_unchanged(tmp_path: Path, test: str) -> None:
    for split, count in (("train", 3), (test, 2)):
        fill(tmp_path / split / "a", count)
        fill(tmp_path / split / "b", count)

    dataset = opened(tmp_path)

    assert np.bincount(dataset.train.labels).tolist() == [3, 3]
    assert np.bincount(dataset.test.labels).tolist() == [2, 2]


def test_different_classes_in_train_and_test_are_rejected(tmp_path: Path) -> None:
    for folder in ("train/cat", "train/dog", "test/cat", "test/dgo"):
        fill(tmp_path / folder, 1)

    with pytest.raises(PsysError, match="only one has: dgo, dog"):
        opened(tmp_path)


def test_class_folder_without_images_is_rejected(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 2)
    (tmp_path / "dog").mkdir()

    with pytest.raises(PsysError, match=r"class folder .*dog has no image"):
        opened(tmp_path)


def test_class_too_small_to_hold_out_a_share_is_rejected(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 20)
    fill(tmp_path / "dog", 1)

    with pytest.raises(PsysError, match="class 'dog' has 1 images: too few to hold out 20%"):
        opened(tmp_path)


@pytest.mark.parametrize("folders", [[], ["only"]])
def test_folder_without_class_folders_is_rejected(tmp_path: Path, folders: list[str]) -> None:
    for folder in folders:
        fill(tmp_path / folder, 2)

    with pytest.raises(PsysError, match=f"has {len(folders)} class folders, expected at least two"):
        opened(tmp_path)


def test_missing_path_or_unknown_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")

    with pytest.raises(PsysError, match=r"nowhere does not exist"):
        opened(tmp_path / "nowhere")
    with pytest.raises(PsysError, match=r"note\.txt is neither a CIFAR-10 archive"):
        opened(tmp_path / "note.txt")


def test_fingerprint_depends_on_the_files_and_not_on_their_location(tmp_path: Path) -> None:
    fill(tmp_path / "one" / "a", 5)
    fill(tmp_path / "one" / "b", 5)
    before = opened(tmp_path / "one").train.fingerprint(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    moved = opened(tmp_path / "two")
    assert moved.train.fingerprint(tmp_path / "two") == before

    changed = moved.train.images[0]
    assert isinstance(changed, Path)
    changed.write_bytes(changed.read_bytes() + b" ")
    assert opened(tmp_path / "two").train.fingerprint(tmp_path / "two") != before

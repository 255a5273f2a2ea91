"""Damaged fetched datasets: each is read or rejected with one clear error."""

import json
from pathlib import Path
from random import Random

import pytest

from psys.data.dataset import Dataset, DatasetSplit, read_dataset, write_dataset
from psys.data.sample import read_sample
from psys.data.source import open_source
from psys.errors import PsysError
from tests.support.cifar import check_dataset
from tests.support.images import pixels_of
from tests.support.mutations import count_rejected, damaged, with_changed_node

pytestmark = pytest.mark.timeout(60)


def small_dataset(name: str, root: Path) -> Dataset:
    """Ten real images in each split."""
    sample = read_sample()
    split = DatasetSplit(pixels_of(sample.test)[::50], sample.test.labels[::50])
    return Dataset(name, "a test", root, sample.classes, split, split)


def test_damaged_datasets_are_read_or_rejected(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    write_dataset(small_dataset("cifar10", tmp_path), folder)
    contents = {path: path.read_bytes() for path in folder.iterdir()}
    metadata = json.loads((folder / "dataset.json").read_text())

    def attempt(random: Random) -> None:
        path = random.choice([*contents, folder / "dataset.json"])
        data = contents[path]
        if path.suffix == ".json" and random.random() < 0.7:
            path.write_text(json.dumps(with_changed_node(metadata, random)))
        else:  # only numpy's header is validated
            path.write_bytes(damaged(data[:128], random) + data[128:])
        try:
            dataset = read_dataset(folder)
        finally:
            path.write_bytes(data)
        check_dataset(dataset)
        assert "/" not in dataset.name

    check_dataset(read_dataset(folder))
    assert count_rejected(150, 8, attempt, folder) > 130


def test_dataset_name_must_not_be_a_path(tmp_path: Path) -> None:
    write_dataset(small_dataset("../../x", tmp_path), tmp_path / "d")

    with pytest.raises(PsysError, match=r"not a complete dataset .*'name'"):
        open_source(str(tmp_path / "d"), tmp_path, 0.2, 0)

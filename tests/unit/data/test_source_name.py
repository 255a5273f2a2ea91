"""Names of stores and locations of sources, as used by `psys prepare` and by training."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from psys.config import parse
from psys.data.dataset import Dataset, DatasetSplit, write_dataset
from psys.data.sample import read_sample
from psys.data.source_name import source_location, store_name
from psys.data.store import PREPARED_FROM
from psys.errors import PsysError
from psys.run.config import RunConfig
from psys.segment import prepare as prepare_module
from psys.segment.prepare import PrepareConfig, prepare
from psys.training import TrainingConfig
from psys.training.store import check_source
from tests.support.cifar import pack
from tests.support.images import encoded, pixels_of
from tests.support.packed import sample_images, samples, write_parquet, write_tar


@pytest.fixture
def sources(tmp_path: Path, cifar_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with one source of each kind."""
    images, labels = sample_images(10, classes=2)
    data = [encoded(image) for image in images]
    write_parquet(tmp_path / "flowers.v2.parquet", data, labels, names=("a", "b"))
    write_tar(tmp_path / "x.tar", samples(images, labels))
    pack(cifar_folder("bin"), tmp_path / "mine.tar.gz")
    for row, label in enumerate(labels):
        for folder in ("a/images", "b/images", "pets.tar"):
            path = tmp_path / folder / f"class{label}" / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data[row])
    (tmp_path / "latest").symlink_to("a/images")
    split = DatasetSplit(pixels_of(read_sample().test)[:10], np.arange(10) % 2)
    write_dataset(Dataset("cifar10", "a test", tmp_path, ("a", "b"), split, split), tmp_path / "datasets" / "cifar10")
    monkeypatch.chdir(tmp_path)
    return tmp_path


SOURCES = {
    "sample": "sample",
    "cifar10": "cifar10",
    "flowers.v2.parquet": "flowers.v2",
    "x.tar": "x",
    "./x.tar": "x",
    "mine.tar.gz": "mine",
    "cifar-10-batches-bin": "cifar-10-batches-bin",
    "datasets/cifar10": "cifar10",
    "a/images": "images",
    "b/images/": "images",
    "latest": "latest",
    "latest/": "latest",
    "pets.tar": "pets",
}


def test_prepare_and_training_use_the_same_store_name(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[Path] = []
    monkeypatch.setattr(prepare_module, "_build", lambda dataset, config, recipe, path, *rest: paths.append(path))

    for source in SOURCES:
        prepare(PrepareConfig(source=source))

    assert paths == [RunConfig(source=source).store for source in SOURCES]
    assert paths == [Path("stores") / name for name in SOURCES.values()]


def test_relative_source_is_named_after_its_folder(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("a/images/class0")
    assert [store_name(source) for source in (".", "./", "..", "../..", "../../images/.")] == [
        *("class0", "class0", "images", "a", "images")
    ]
    assert store_name("/") == "root"
    assert store_name(".tar") == ".tar"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/x", "x/"])
def test_store_name_must_be_one_folder(name: str) -> None:
    with pytest.raises(PsysError, match=r"'name'.*expected the name of one folder"):
        parse(PrepareConfig, ["--name", name], "psys prepare")


def test_source_location_is_independent_of_the_path_taken(sources: Path) -> None:
    paths = ("a/images", "./a/images/", "latest", str(sources / "a" / "images"), "b/../a/images")
    assert {source_location(path) for path in paths} == {os.path.realpath("a/images")}
    assert source_location("b/images") != source_location("a/images")
    assert (source_location("sample"), source_location("cifar10")) == ("sample", "cifar10")
    assert source_location("./sample") != "sample"


def test_store_of_another_source_with_the_same_name_is_rejected(sources: Path) -> None:
    def check(prepared_from: str | None, **settings: Any) -> None:
        manifest = {} if prepared_from is None else {PREPARED_FROM: prepared_from}
        check_source(TrainingConfig(**settings), SimpleNamespace(manifest=manifest))  # type: ignore[arg-type]

    location = source_location("a/images")
    for source in ("a/images", "latest"):
        check(location, source=source)
    check(None, source="b/images")  # an older store has no location
    check(source_location("gone/images"), source="b/images")  # it may have been moved
    check(location, source="b/images", store=Path("stores/images"))  # the store was chosen explicitly
    check("sample", store=Path("stores/mine"))
    with pytest.raises(PsysError, match=rf"stores/images was prepared from {location}, not from b/images: .*--store"):
        check(location, source="b/images")
    with pytest.raises(PsysError, match=r"stores/sample was prepared from sample, not from \./sample"):
        check("sample", source="./sample")

"""Batches of a store whose images are decoded in the background."""

from pathlib import Path

import numpy as np
import pytest
import torch

from psys.augment.batch import AugmentConfig
from psys.augment.foreground import ForegroundConfig
from psys.compute.batches import Batches
from psys.compute.order import samples_of
from psys.data.batch_plan import BatchPlan
from psys.data.store import PreparedStore
from tests.support.stores import write_small_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PreparedStore:
    return write_small_store(tmp_path_factory.mktemp("stores") / "encoded", 4, 1, layout="encoded")


def batches_of(store: PreparedStore, **settings: object) -> Batches:
    config = AugmentConfig(foreground=ForegroundConfig(black=0.5))
    usual = {"batch_size": 8, "validation_share": 0.1, "seed": 0, "guess": True}
    return Batches(store, config, torch.device("cpu"), **{**usual, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "order", [[0, 1, 2, 3, 4, 5, 6], [1, 3, 5, 7, 6, 4, 2], [0, 2, 4, 4, 6, 8, 9, 10, 3, 11], [9, 0, 9, 18, 27, 30]]
)
def test_a_batch_depends_on_its_number_alone(store: PreparedStore, order: list[int]) -> None:
    batches = batches_of(store)
    for number in order:
        views, labels = batches[number]
        alone, its_labels = batches_of(store)[number]
        assert torch.equal(views, alone)
        assert torch.equal(labels, its_labels)


def test_batches_in_even_steps_are_decoded_ahead(store: PreparedStore) -> None:
    batches = batches_of(store)
    for number in (1, 4, 7):
        batches[number]
    assert batches._ahead is not None
    assert [*batches._ahead._coming] == [10]
    guessed = batches._ahead._coming[10]
    batches.expect(11)
    batches.expect(11)
    assert [*batches._ahead._coming] == [11]
    assert len(batches._ahead._coming[11].result()) == 4
    assert guessed.cancelled() or guessed.result()
    assert torch.equal(batches[11][0], batches_of(store)[11][0])


def test_no_batch_is_guessed_where_the_next_one_is_told(store: PreparedStore) -> None:
    batches = batches_of(store, guess=False)
    for number in (1, 2, 3):
        batches[number]
    assert batches._ahead is not None
    assert not batches._ahead._coming


def test_an_encoded_store_gives_batches_of_any_size(store: PreparedStore) -> None:
    larger = PreparedStore.open(store.path, image_size=48)
    views, _ = batches_of(larger)[0]
    assert views.shape == (8, 3, 48, 48)
    assert np.isfinite(views.numpy()).all()


def test_error_in_a_batch_decoded_in_vain_is_ignored(tmp_path: Path) -> None:
    """An error in the background is raised only where that batch is asked for."""
    store = write_small_store(tmp_path / "store", 4, 1, layout="encoded")
    batches, ahead = batches_of(store), batches_of(store)
    damaged = ahead._chosen[samples_of(3, BatchPlan(ahead.samples, 8), 0).numpy()]
    records = np.memmap(tmp_path / "store" / "train_records_00000.bin", np.uint8, "r+")
    index = np.load(tmp_path / "store" / "train_index.npy")
    for row in damaged:
        records[index[row, 1] : index[row, 1] + 8] = 0
    records.flush()
    for number in (1, 2):
        batches[number]
    assert batches._ahead is not None
    assert batches._ahead._coming[3].exception() is not None
    batches[0]

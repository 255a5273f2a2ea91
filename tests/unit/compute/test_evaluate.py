import numpy as np
import pytest
import torch

from psys.augment.batch import normalise
from psys.compute.evaluate import evaluate
from psys.data.store import PreparedStore
from psys.models.resnet import resnet


def test_evaluation_in_pieces_is_evaluation_of_the_whole(small_store: PreparedStore) -> None:
    test, module = small_store.split("test"), resnet(8)
    colours = (small_store.channel_mean, small_store.channel_std)
    everything = (module, test.images, test.labels, np.arange(40), *colours, torch.device("cpu"))
    whole, pieces = evaluate(*everything), evaluate(*everything, most_pixels=7 * 32 * 32)
    assert whole.images == pieces.images == 40
    assert whole.accuracy == pieces.accuracy
    assert whole.loss == pytest.approx(pieces.loss, rel=1e-5)
    logits = module(normalise(torch.tensor(test.images), *colours))
    assert np.array_equal(whole.right, logits.argmax(1).numpy() == test.labels)
    assert np.array_equal(whole.right, pieces.right)
    assert whole.accuracy == whole.right.mean() == whole.confusion.trace() / 40

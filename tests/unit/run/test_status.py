import pytest

from psys.ps.messages import Evaluated
from psys.run.status import Status
from tests.support.runs import update


def test_before_the_first_update_the_status_says_why_workers_wait() -> None:
    status = Status("sync", epochs=3, workers=2)
    assert str(status) == "sync · 2 workers · waiting for the first gradient"
    status.waiting = {"waits for the workers that start together": 1}
    assert str(status) == "sync · 2 workers · waiting: 1 worker waits for the workers that start together"
    status.waiting = {"waits for a": 2, "waits for b": 1}
    assert status.why_waiting() == "waiting: 2 workers: each waits for a, 1 worker waits for b"


def test_updates_are_summed_and_smoothed() -> None:
    status = Status("async", epochs=3, workers=2, train_seconds=10.0, resumed_seconds=10.0)
    status.add(update(1, seconds=11.0, epochs=0.5, loss=2.0, accuracy=0.5, staleness=(1, 3), images=8))
    assert str(status) == ("async · 2 workers · epoch 0.5/3 · 8 images/s · loss 2.000 · accuracy 50.0% · staleness 2.0")
    status.add(update(2, seconds=12.0, epochs=1.0, loss=1.0, accuracy=1.0, staleness=(0,), images=24))
    assert (status.updates, status.images, status.epochs_done, status.train_seconds) == (2, 32, 1.0, 12.0)
    assert status.loss == pytest.approx(1.98)
    assert status.accuracy == pytest.approx(0.51)
    assert "16 images/s" in str(status)


def test_held_out_accuracy_of_the_newest_and_of_the_best_snapshot_is_shown() -> None:
    status = Status("async", epochs=9)
    status.add(update(1))
    status.evaluated = status.best = Evaluated(version=40, epochs=2.0, loss=1.0, accuracy=0.612, images=10)
    assert str(status).endswith(" · held-out 61.2% (epoch 2)")
    status.evaluated = Evaluated(version=50, epochs=2.5, loss=1.0, accuracy=0.6, images=10)
    assert str(status).endswith(" · held-out 60.0% (epoch 2.5) · best 61.2% (epoch 2)")

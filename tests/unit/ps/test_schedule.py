from typing import Any

import pytest
from pydantic import ValidationError

from psys.ps.schedule import LINEAR_UP_TO, Scaling, ScheduleConfig, highest_rate, learning_rate, rate_factor

TABLE_I = ((0, 1e-3), (50, 1e-4), (65, 1e-5), (75, 1e-6), (85, 5e-7))


@pytest.mark.parametrize(
    ("epoch", "rate"),
    # The paper counts epochs from 1: "51-65" is what comes after 50 epochs are done.
    [
        (1, 1e-3),
        (50, 1e-3),
        (51, 1e-4),
        (65, 1e-4),
        (66, 1e-5),
        (75, 1e-5),
        (76, 1e-6),
        (85, 1e-6),
        (86, 5e-7),
        (100, 5e-7),
    ],
)
def test_table_one_of_the_paper(epoch: int, rate: float) -> None:
    config = ScheduleConfig(kind="table", table=TABLE_I)
    assert learning_rate(config, epochs_done=epoch - 1, epochs=100) == rate
    assert learning_rate(config, epochs_done=epoch - 0.01, epochs=100) == rate


def test_cosine_rises_through_the_warmup_and_falls_to_zero() -> None:
    config = ScheduleConfig(kind="cosine", learning_rate=0.4, warmup_epochs=2)
    rates = [learning_rate(config, epoch / 10, epochs=12) for epoch in range(121)]
    assert rates[0] > 0
    assert rates[:21] == sorted(rates[:21])
    assert rates[20] == pytest.approx(0.4)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[70] == pytest.approx(0.2)
    assert rates[-1] == pytest.approx(0.0)


def test_a_warmup_as_long_as_the_run_is_allowed() -> None:
    config = ScheduleConfig(kind="cosine", learning_rate=0.4, warmup_epochs=3)
    assert learning_rate(config, 3.0, epochs=3) == pytest.approx(0.4)


@pytest.mark.parametrize(("scaling", "factor"), [(None, 1), ("none", 1), ("sqrt", 2), ("linear", 4), ("capped", 4)])
def test_rate_of_a_mean_of_gradients_is_scaled(scaling: Scaling | None, factor: float) -> None:
    config = ScheduleConfig(kind="cosine", learning_rate=0.1, warmup_epochs=2, scaling=scaling)
    for epoch in range(9):
        rate = learning_rate(config, epoch, epochs=8)
        assert learning_rate(config, epoch, epochs=8, gradients=4) == pytest.approx(factor * rate)
    assert highest_rate(config, gradients=4) == pytest.approx(0.1 * factor)


def test_rate_of_one_gradient_is_the_setting_itself_whatever_the_scaling() -> None:
    assert {rate_factor(scaling, 1) for scaling in (None, "none", "sqrt", "linear", "capped")} == {1.0}
    assert rate_factor("capped", LINEAR_UP_TO + 1) == LINEAR_UP_TO


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "table"},
        {"kind": "cosine", "table": TABLE_I},
        {"kind": "table", "table": ((5, 0.1), (5, 0.2))},
        {"kind": "table", "table": ((5, 0.1), (3, 0.2))},
        {"kind": "table", "table": ((5, 0.0),)},
        {"learning_rate": 0},
        {"warmup_epochs": -1},
        {"scaling": "square"},
    ],
)
def test_schedules_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ScheduleConfig(**wrong)

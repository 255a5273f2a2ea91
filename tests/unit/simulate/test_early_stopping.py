"""A run stops once its held-out accuracy has not improved for `early_stopping` epochs."""

import pytest

from psys.ps.events import RunEnded, SnapshotEvaluated, StoppedEarly
from psys.ps.ledger import Ledger
from psys.ps.messages import Evaluated
from psys.run.assembly import run_controller
from psys.run.config import RunConfig
from psys.simulate.in_process import InProcessRun
from tests.support.workloads import mixing, workload


def run_of(early_stopping: float | None, **settings: object) -> InProcessRun:
    fields = {"mode": "async", "epochs": 6, "batch_size": 4, "early_stopping": early_stopping, **settings}
    config = RunConfig.model_validate(fields)
    run = InProcessRun(config, workload(config, mixing), awaited=1)
    run.join()
    return run


def train_epochs(run: InProcessRun, accuracies: list[float]) -> None:
    """Train an epoch for each accuracy; its snapshot is evaluated before the next epoch."""
    for accuracy in accuracies:
        run.run(updates=run.version + run.ledger.plan.batches(1))
        run.evaluate(run.version, accuracy)


def test_run_without_a_better_evaluation_for_the_patience_ends_early() -> None:
    run = run_of(early_stopping=2)
    train_epochs(run, [0.3, 0.5, 0.4, 0.5])
    run.run()
    assert run.end is not None
    assert run.end.stopped_early
    assert run.end.complete
    assert run.end.account.lost == 0
    assert 0 < run.end.account.unfinished == run.ledger.batches - run.end.account.applied
    stopped, end = (next(e for e in run.log if isinstance(e, kind)) for kind in (StoppedEarly, RunEnded))
    assert isinstance(stopped, StoppedEarly)
    assert isinstance(end, RunEnded)
    assert (stopped.best_version, stopped.best_accuracy) == (2 * run.ledger.plan.batches(1), 0.5)
    assert end.unfinished == run.end.account.unfinished
    assert [e.accuracy for e in run.log if isinstance(e, SnapshotEvaluated)] == [0.3, 0.5, 0.4, 0.5]
    assert run.saves[-1].save.ledger is not None  # the run can be continued


def test_lower_loss_at_the_same_accuracy_is_better() -> None:
    run = run_of(early_stopping=2)
    train_epochs(run, [0.5, 0.5])
    run.evaluate(run.version, 0.5, loss=0.5)
    train_epochs(run, [0.4])
    assert run.end is None


def test_patience_begins_anew_where_settings_changed() -> None:
    config = RunConfig(early_stopping=2, batch_size=4)
    best = Evaluated(version=20, epochs=2.0, loss=0.5, accuracy=0.9, images=10)
    controller = run_controller(config, Ledger(20, 40, 4), awaited=1, version=50, best=best, patience_from=5.0)

    def stops_at(epochs: float) -> bool:
        worse = Evaluated(version=int(10 * epochs), epochs=epochs, loss=0.6, accuracy=0.8, images=10)
        return any(isinstance(event, StoppedEarly) for event in controller.handle(0.0, worse).log)

    assert [stops_at(epochs) for epochs in (6.0, 6.9, 7.0)] == [False, False, True]


@pytest.mark.parametrize("early_stopping", [None, 3])
def test_run_goes_on_within_the_patience_or_without_one(early_stopping: float | None) -> None:
    run = run_of(early_stopping)
    train_epochs(run, [0.5, 0.4, 0.3])
    run.run(updates=4 * run.ledger.plan.batches(1))
    run.evaluate(run.ledger.plan.batches(1), 0.1)  # an evaluation of an earlier snapshot that comes late
    run.run()
    assert run.end is not None
    assert not run.end.stopped_early
    assert run.end.account.unfinished == 0


@pytest.mark.parametrize("off", [{"validation_share": 0}, {"evaluate_every": 0}])
def test_early_stopping_without_evaluations_is_refused(off: dict[str, float]) -> None:
    with pytest.raises(
        ValueError, match="'early_stopping' needs 'validation_share' above 0, and 'evaluate_every' not 0"
    ):
        run_of(early_stopping=1, **off)

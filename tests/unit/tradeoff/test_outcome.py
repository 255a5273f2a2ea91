"""What is read from the directories of runs and studies, and what is said of those that are none."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from psys.data.store import PreparedStore
from psys.errors import PsysError
from psys.run import results
from psys.run.directory import RunDirectory
from psys.run.results import evaluate_run
from psys.tradeoff.compare import compare
from psys.tradeoff.outcome import differing, read_outcome, read_study
from psys.tradeoff.report import write_report
from tests.support.runs import trained_events, trained_run, write_events, write_tiny_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PreparedStore:
    return write_tiny_store(tmp_path_factory.mktemp("stores") / "tiny")


@pytest.fixture(autouse=True)
def without_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations export nothing: the export takes seconds."""
    monkeypatch.setattr(results, "_export", lambda *unused: {"images": 0, "max_difference": 0.0, "agreement": 1.0})


def evaluated(folder: Path, store: PreparedStore, events: bool = True) -> RunDirectory:
    run = trained_run(folder, store)
    if events:
        write_events(run, trained_events(store))
        evaluate_run(run, Console(file=io.StringIO()))
    return run


def test_outcome_of_a_run_has_the_figures_of_its_files(tmp_path: Path, store: PreparedStore) -> None:
    run = evaluated(tmp_path, store)
    outcome, result = read_outcome(run.path), run.result()
    assert outcome.accuracy == result["best"]["test"]["accuracy"] == 1.0
    assert outcome.right is not None
    assert (outcome.right.tolist(), outcome.test_images) == ([True] * 10, 10)
    assert [point._asdict() for point in outcome.points] == result["points"]
    assert (outcome.seconds, outcome.worker_hours) == (6.0, 2 * 6.0 / 3600)
    assert outcome.staleness == {1: 3, 3: 3}
    assert outcome.staleness_mean == 2.0
    assert outcome.learning_rate == 0.1
    assert outcome.batches["applied"] == 6
    assert outcome.held_out_images == 4
    assert outcome.settings["augment.views"] == run.config().augment.views
    assert outcome.environment["packages"]["torch"]
    assert not {"name", "runs"} & outcome.settings.keys()
    assert (outcome.settings["faults"], outcome.settings["slow_workers"]) == ([], [])


def test_without_the_file_of_bits_an_outcome_has_none(tmp_path: Path, store: PreparedStore) -> None:
    run = evaluated(tmp_path, store)
    (run.path / "right.npz").unlink()
    assert read_outcome(run.path).right is None


@pytest.mark.parametrize("of", [read_outcome, lambda run: compare([run], run / "compare.html", Console())])
def test_what_is_no_evaluated_run_gets_one_line(tmp_path: Path, store: PreparedStore, of: object) -> None:
    assert callable(of)
    with pytest.raises(PsysError, match=r"nothing is not the directory of a run: it has no config\.yaml"):
        of(tmp_path / "nothing")
    run = evaluated(tmp_path, store, events=False)
    with pytest.raises(PsysError, match="was not evaluated yet: run `psys evaluate "):
        of(run.path)


def test_a_result_without_its_figures_gets_one_line(tmp_path: Path, store: PreparedStore) -> None:
    run = evaluated(tmp_path, store)
    run.write_result({"best": {}})
    with pytest.raises(PsysError, match=r"result\.json is not a result of this version: remove it, and run `psys eval"):
        read_outcome(run.path)
    run.result_file.unlink()
    evaluate_run(run, Console(file=io.StringIO()))
    assert read_outcome(run.path).accuracy == 1.0


def test_settings_that_differ_are_found_also_if_one_run_lacks_them() -> None:
    assert differing([{"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5}]) == ["b", "c"]
    assert differing([{"a": 1}]) == []


def study_of(folder: Path, store: PreparedStore, run: RunDirectory) -> Path:
    """A study with one trial that is done, one that failed, and one whose run was changed by hand."""
    study = folder / "study"
    (study / "trials").mkdir(parents=True)
    base = {"store": str(store.path), "model": "mlp2", "workers": 2, "epochs": 3, "batch_size": 8}
    settings = {
        **{"name": "study", "base": base, "arms": {"sync": {"mode": "sync"}, "async": {"mode": "async"}}},
        **{"seeds": [0, 1], "targets": [0.5]},
    }
    (study / "study.yaml").write_text(json.dumps(settings))
    names = {"sync.uniform.seed0": "done", "sync.uniform.seed1": "done", "async.uniform.seed0": "failed"}
    for name, status in names.items():
        record = {
            **{"trial": name, "arm": name.partition(".")[0], "condition": "uniform", "seed": int(name[-1])},
            **{"tuning": None, "status": status, "reason": "killed" if status == "failed" else None},
            **{"started": 1.0, "ended": 2.0, "load": 0.0, "host": "h"},
        }
        with (study / "trials.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
    run.path.rename(study / "trials" / "sync.uniform.seed0")
    damaged = study / "trials" / "sync.uniform.seed1"
    damaged.mkdir()
    (damaged / "config.yaml").write_text((study / "trials" / "sync.uniform.seed0" / "config.yaml").read_text())
    (damaged / "result.json").write_text("{")
    return study


def test_study_has_its_trials_and_a_run_that_cannot_be_read_counts_as_failed(
    tmp_path: Path, store: PreparedStore
) -> None:
    study = read_study(study_of(tmp_path, store, evaluated(tmp_path, store)))
    assert (study.reference, study.conditions, study.seeds, study.targets) == ("sync", ("uniform",), (0, 1), (0.5,))
    done, damaged, failed = study.trials
    assert done.outcome is not None
    assert done.outcome.accuracy == 1.0
    assert (failed.outcome, failed.reason) == (None, "killed")
    assert damaged.outcome is None
    assert "is not a JSON object" in (damaged.reason or "")


def test_report_of_a_study_is_written_into_its_directory(tmp_path: Path, store: PreparedStore) -> None:
    study = study_of(tmp_path, store, evaluated(tmp_path, store))
    write_report(study)
    assert {"report.html", "report.md", "report.json", "report.csv"} <= {path.name for path in study.iterdir()}
    figures = json.loads((study / "report.json").read_text())
    assert [trial["reason"] for trial in figures["trials"]][2] == "killed"
    assert figures["missing"] == [["async", "uniform", 1]]


def test_what_is_no_study_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"cannot read config .*study\.yaml: No such file"):
        write_report(tmp_path)


def test_compare_shows_what_differs_and_writes_a_page(tmp_path: Path, store: PreparedStore) -> None:
    runs = [evaluated(tmp_path / name, store) for name in ("a", "b[red]")]
    config = runs[1].config_file
    config.write_text(
        config.read_text().replace("mode: async", "mode: ssp").replace("label_smoothing: 0.0", "label_smoothing: 0.2")
    )
    printed, page = io.StringIO(), tmp_path / "compare.html"
    compare([run.path for run in runs], page, Console(file=printed, width=200))
    assert "b[red]" in printed.getvalue()
    lines = [line.split() for line in printed.getvalue().splitlines()]
    assert ["│", "mode", "│", "async", "│", "ssp", "│"] in lines
    assert ["│", "label_smoothing", "│", "0.0", "│", "0.2", "│"] in lines
    assert not [line for line in lines if "epochs" in line]
    text = page.read_text()
    assert str(runs[0].path) in text  # both are called r: their paths name them
    assert text.count('"train_loss":[') == 2  # the curves of both
    with pytest.raises(PsysError, match="is given twice"):
        compare([runs[0].path, runs[0].path], page, Console(file=printed))
    with pytest.raises(PsysError, match=r"cannot write .*no/page\.html"):
        compare([runs[0].path], tmp_path / "no" / "page.html", Console(file=printed))


def test_bits_are_those_of_the_best_snapshot(tmp_path: Path, store: PreparedStore) -> None:
    run = evaluated(tmp_path, store)
    with np.load(run.path / "right.npz", allow_pickle=False) as arrays:
        assert arrays["last"].any() != arrays["best"].any()
    outcome = read_outcome(run.path)
    assert outcome.right is not None
    assert outcome.right.all()

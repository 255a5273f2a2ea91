"""Training called from Python: from a program, from a thread, and stopped."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from psys.run.directory import RunDirectory
from psys.training import TrainingConfig, read_settings, train
from tests.support.processes import PROGRAMS, resumes, run, updates, wait_until

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def config(store: Path, folder: Path, epochs: int) -> TrainingConfig:
    return TrainingConfig(store=store, runs=folder / "runs", name="r", workers=2, epochs=epochs, batch_size=16)


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def test_program_without_a_guard_of_its_main_module(small_store_path: Path, tmp_path: Path) -> None:
    program = str(PROGRAMS / "training.py")
    done = run(program, str(small_store_path), str(tmp_path), cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.count("the program starts") == 1
    assert done.out.splitlines()[-1] == "complete: True"


def test_training_in_a_thread(small_store_path: Path, tmp_path: Path) -> None:
    before, handlers = children(), [signal.getsignal(number) for number in STOP_SIGNALS]
    with ThreadPoolExecutor(1) as threads:
        trained = threads.submit(train, config(small_store_path, tmp_path, epochs=1)).result()
    assert trained.complete
    result = trained.result()
    assert (result["batches"]["applied"], result["batches"]["lost"]) == (9, 0)
    assert result["best"]["version"] == 9
    assert children() <= before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_stopped_training_returns_a_run_that_can_be_resumed(
    small_store_path: Path, tmp_path: Path, number: signal.Signals
) -> None:
    before, handlers = children(), [signal.getsignal(number) for number in STOP_SIGNALS]
    path = tmp_path / "runs" / "r"

    def stop(reached: int) -> None:
        try:
            wait_until(lambda: len(updates(path)) >= reached + 3, "three updates")
        finally:
            os.kill(os.getpid(), number)

    def stopped(settings: TrainingConfig) -> RunDirectory:
        with ThreadPoolExecutor(1) as threads:
            sent = threads.submit(stop, len(updates(path)))
            stopped = train(settings)
            sent.result()
        return stopped

    trained = stopped(config(small_store_path, tmp_path, epochs=5000))
    assert (trained.path, trained.complete) == (path, False)
    assert not stopped(read_settings(["--resume", str(path)])).complete
    assert len(resumes(path)) == 1
    assert children() <= before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers

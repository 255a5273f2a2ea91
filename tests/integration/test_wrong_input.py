"""Wrong input of a user: one line that names it, exit code 2, and no run directory. (Of prepare: test_prepare.py.)"""

import runpy
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from psys.run.config import RunConfig
from psys.run.directory import RunDirectory
from tests.support.processes import PS, Done
from tests.support.stores import write_small_store

Refused = Callable[..., Done]


def check(done: Done, *words: str) -> None:
    assert done.code == 2, done
    errors = [line for line in done.err.splitlines() if line.startswith("psys: error: ")]
    assert len(errors) == 1
    assert "Traceback" not in done.err
    for word in words:
        assert word in errors[0]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> "Refused":
    """Runs a command that ends before it trains, in this process: a new process would import torch again."""

    def refused(command: str, *arguments: str) -> Done:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [command, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(command, run_name="__main__") if command == PS else runpy.run_module(
                command, run_name="__main__"
            )
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, *capfd.readouterr())

    return refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mode", "fast"], ["'mode'", "'fast'", "sync"]),
        (["--workers", "0"], ["'workers'", "1"]),
        (["--model", "resnet9"], ["resnet9", "resnet44"]),
        (["--store", "nowhere", "--source", "no/such/folder"], ["no/such/folder"]),
        (["--config", "none.yaml"], ["none.yaml", "No such file"]),
        (["--role", "worker"], ["--join"]),
        (["--role", "worker", "--join", "localhost:99999"], ["localhost:99999"]),
        (["--listen", "no.such.host.invalid"], ["no.such.host.invalid"]),
        (["--listen", ""], ["'listen'"]),
        (["--heartbeat-timeout", "inf"], ["'heartbeat_timeout'", "finite"]),
        (["--seed", "20240101123456"], ["'seed'"]),
        (["--schedule.table", "[[0"], ["schedule.table"]),
        (["--role", "worker", "--join", "localhost"], ["'join'"]),
        (["--role", "server", "--join", "a..b:4000"], ["'a..b'", "host name"]),
        (["--ray-address", "127.0.0.1:9", "--workers", "2"], ["nothing answers at ray_address 127.0.0.1:9"]),
    ],
    ids=lambda value: "-".join(value),
)
def test_wrong_argument(refused: Refused, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    check(refused(PS, *arguments), *words)
    assert not list((tmp_path / "runs").glob("*"))


def test_misspelt_setting(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("mode: sync\noptimizer: {momentun: 0.5}\n")
    check(refused(PS, "--config", "c.yaml"), "optimizer.momentun", "did you mean 'optimizer.momentum'", "c.yaml")


def test_occupied_port(refused: Refused, small_store_path: Path, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        check(refused(PS, "--store", str(small_store_path), "--port", port), port, "in use", "--port")
    assert not list((tmp_path / "runs").glob("*"))


def test_validation_share_that_leaves_no_training_images(
    refused: Refused, small_store_path: Path, tmp_path: Path
) -> None:
    done = refused(PS, "--store", str(small_store_path), "--validation-share", "0.99")
    check(done, "leaves none to train on")
    assert not list((tmp_path / "runs").glob("*"))


def test_model_for_images_of_another_size(refused: Refused, small_store_path: Path, tmp_path: Path) -> None:
    store = write_small_store(tmp_path / "encoded", train_per_class=2, test_per_class=1, layout="encoded")
    done = refused(PS, "--store", str(store.path), "--image-size", "40", "--model", "mlp16")
    check(done, "an mlp takes images of shape (3, 32, 32)", "(3, 40, 40)")
    assert not list((tmp_path / "runs").glob("*"))


def test_name_of_an_existing_run(refused: Refused, small_store_path: Path, tmp_path: Path) -> None:
    RunDirectory.create(RunConfig(runs=tmp_path / "runs", name="r")).events.write_text("{}\n", encoding="utf-8")
    check(refused(PS, "--store", str(small_store_path), "--name", "r"), "runs/r", "--resume runs/r", "--name")


def test_damaged_store(refused: Refused, small_store_path: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    for file in small_store_path.iterdir():
        (store / file.name).write_bytes(file.read_bytes()[:-1] if "images" in file.name else file.read_bytes())
    check(refused(PS, "--store", "store"), "images.npy", "prepare the store again")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["evaluate", "no/run"], "no/run"),
        (["compare", "no/run"], "no/run is not the directory of a run"),
        (["compare"], "RUN"),
        (["data", "fetch", "imagenet"], "imagenet"),
        (["data", "fetch", "cifar10", "--archive", "none.tar.gz"], "none.tar.gz"),
        (["trian"], "did you mean 'train'"),
        (["train", "--lr", "0.1"], "did you mean --schedule.learning-rate?"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_wrong_command(refused: Refused, tmp_path: Path, arguments: list[str], word: str) -> None:
    check(refused("psys", *arguments), word)

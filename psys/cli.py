"""The `psys` command: train, compare settings, fetch data, prepare images, evaluate and audit runs."""

import os
import platform
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from psys.config import Parser, parse
from psys.errors import PsysError, exit_with_message
from psys.output import protect_output, stdout_is_the_result


def train(argv: Sequence[str], prog: str = "psys train") -> None:
    """Train, with the settings of a command line. Exits as `psys.training.launch.main` does."""
    protect_output()
    # Before torch is imported: its RPC logs a warning for every worker that leaves.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from psys.training.launch import main

    main(argv, prog)


def _prepare(argv: Sequence[str]) -> None:
    try:
        from psys.segment.prepare import PrepareConfig, prepare
    except ModuleNotFoundError as error:  # ray, or cv2 of opencv-python-headless
        raise PsysError(
            f"psys prepare needs {error.name}, which is not installed here: prepare the store elsewhere"
        ) from None
    prepare(parse(PrepareConfig, argv, "psys prepare"))


def _data(argv: Sequence[str]) -> None:
    from psys.data.fetch import FetchConfig, fetch

    parser = Parser(prog="psys data", description="Fetch a data set.", examples=["psys data fetch cifar10"])
    parser.add_argument("action", choices=["fetch"])
    parser.add_argument("dataset", choices=["cifar10"])
    parser.parse_args(argv[:2])
    fetch(parse(FetchConfig, argv[2:], "psys data fetch cifar10"))


def _evaluate(argv: Sequence[str]) -> None:
    from psys.run.directory import RunDirectory
    from psys.run.results import evaluate_run

    parser = Parser(prog="psys evaluate", description=evaluate_run.__doc__, examples=["psys evaluate runs/NAME"])
    parser.add_argument("run", type=Path, help="directory of a run that was stopped before it was evaluated")
    parser.add_argument("--store", type=Path, help="the run's prepared store, if it is not where the run was trained")
    arguments = parser.parse_args(argv)
    run = RunDirectory(arguments.run, arguments.store)
    run.config()  # raises if this is no run: a lock is not left elsewhere
    with run.locked():
        evaluate_run(run, Console())


def _audit(argv: Sequence[str]) -> None:
    from psys.run.audit import audit

    parser = Parser(prog="psys audit", description=audit.__doc__, examples=["psys audit runs/NAME"])
    parser.add_argument("run", type=Path, help="directory of a run")
    run = parser.parse_args(argv).run
    with stdout_is_the_result():
        audit(run / "events.jsonl", Console())


def _compare(argv: Sequence[str]) -> None:
    from psys.tradeoff.compare import compare

    parser = Parser(prog="psys compare", description=compare.__doc__, examples=["psys compare runs/A runs/B"])
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="directory of a run that was evaluated")
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help="the page (default: %(default)s)")
    arguments = parser.parse_args(argv)
    with stdout_is_the_result():
        compare(arguments.runs, arguments.out, Console())


def tradeoff(argv: Sequence[str], prog: str = "psys tradeoff") -> None:
    """Run a study with the settings of a command line; exit code 1 if trials failed."""
    protect_output()
    with exit_with_message():
        from psys.run.config import CONFIGS
        from psys.tradeoff.config import StudyCommand
        from psys.tradeoff.study import run_study

        if not run_study(parse(StudyCommand, argv, prog, CONFIGS / "tradeoff.yaml"), Console()):
            sys.exit(1)


_COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "train": (train, "train with a parameter server: psys train --config sample"),
    "tradeoff": (tradeoff, "compare settings over seeds, accuracy against wall-clock: psys tradeoff --config tradeoff"),
    "data": (_data, "fetch a data set: psys data fetch cifar10"),
    "prepare": (_prepare, "decode, resize and segment images into a store that training reads"),
    "evaluate": (_evaluate, "evaluate and export what a stopped run has trained"),
    "compare": (_compare, "what runs reached, the settings that differ, and their curves on one page"),
    "audit": (_audit, "recompute a run's batch accounting from its events and compare it with the reported totals"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; for what the user must correct, one line and exit code 2."""
    protect_output()
    parser = Parser(
        prog="psys",
        usage="psys COMMAND [ARGUMENT ...]",
        description="Train image classifiers with a parameter server. For a command's arguments: psys COMMAND --help.",
        examples=[
            "psys train --config sample --epochs 5 --workers 2",
            "torchrun --standalone --nproc-per-node 3 -m psys train",
        ],
    )
    commands = parser.add_argument_group("commands")
    for name, (_, text) in _COMMANDS.items():
        commands.add_argument(name, nargs="?", help=text)
    parser.add_argument("--version", action="store_true", help="show the versions of psys, Python and torch, and exit")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if not arguments:
        parser.print_help(sys.stderr)
        sys.exit(2)
    with exit_with_message():
        command = arguments[0]
        if command in _COMMANDS:
            _COMMANDS[command][0](arguments[1:])
        elif command == "--version":
            with stdout_is_the_result():
                print(f"psys {version('psys')} (Python {platform.python_version()}, torch {version('torch')})")
        elif command in ("-h", "--help"):
            parser.print_help()
        else:
            close = get_close_matches(command, _COMMANDS, n=1)
            meant = f"did you mean '{close[0]}'?" if close else f"the commands are {', '.join(_COMMANDS)}"
            raise PsysError(f"unknown command '{command}': {meant}")

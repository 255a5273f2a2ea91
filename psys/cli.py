"""The `psys` command: fetch data, prepare images, evaluate and audit runs. (launch/ps.py trains.)"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from psys.config import Parser, parse
from psys.errors import exit_with_message


def _prepare(argv: Sequence[str]) -> None:
    from psys.segment.prepare import PrepareConfig, prepare

    prepare(parse(PrepareConfig, argv, "psys prepare"))


def _data(argv: Sequence[str]) -> None:
    from psys.data.fetch import FetchConfig, fetch

    parser = Parser(prog="psys data")
    parser.add_argument("action", choices=["fetch"])
    parser.add_argument("dataset", choices=["cifar10"])
    rest = parser.parse_known_args(argv)[1] if argv[:2] == ["fetch", "cifar10"] else parser.parse_args(argv)
    assert isinstance(rest, list)
    fetch(parse(FetchConfig, rest, "psys data fetch cifar10"))


def _evaluate(argv: Sequence[str]) -> None:
    from psys.run.directory import RunDirectory
    from psys.run.results import evaluate_run

    parser = Parser(prog="psys evaluate", description=evaluate_run.__doc__)
    parser.add_argument("run", type=Path, help="directory of a run that was stopped before it was evaluated")
    evaluate_run(RunDirectory(parser.parse_args(argv).run), Console())


def _audit(argv: Sequence[str]) -> None:
    from psys.run.audit import audit

    parser = Parser(prog="psys audit", description=audit.__doc__)
    parser.add_argument("run", type=Path, help="directory of a run")
    audit(parser.parse_args(argv).run / "events.jsonl", Console())


_COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "data": (_data, "fetch a data set: psys data fetch cifar10"),
    "prepare": (_prepare, "decode, resize and segment images into a store that training reads"),
    "evaluate": (_evaluate, "evaluate and export what a stopped run has trained"),
    "audit": (
        _audit,
        "recompute a run's batch accounting from events.jsonl and compare it with the totals the run reported",
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; for what the user must correct, one line and exit code 2."""
    parser = Parser(
        prog="psys",
        description="Everything around training with a parameter server (to train: torchrun launch/ps.py --help).",
        epilog="\n".join(f"  {name:10}{text}" for name, (_, text) in _COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=_COMMANDS)
    arguments = list(sys.argv[1:] if argv is None else argv)
    with exit_with_message():
        command = parser.parse_args(arguments[:1]).command
        _COMMANDS[command][0](arguments[1:])


if __name__ == "__main__":
    main()

"""The `psys` command: data fetched, images prepared, runs evaluated. (Training starts from launch/ps.py.)"""

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
    from psys.run.results import finish

    parser = Parser(prog="psys evaluate", description=finish.__doc__)
    parser.add_argument("run", type=Path, help="directory of a run that was stopped before it was evaluated")
    finish(RunDirectory(parser.parse_args(argv).run), Console())


def _audit(argv: Sequence[str]) -> None:
    from psys.run.audit import audit

    parser = Parser(prog="psys audit", description=audit.__doc__)
    parser.add_argument("run", type=Path, help="directory of a run")
    audit(parser.parse_args(argv).run / "events.jsonl", Console())


_COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "data": (_data, "fetch a data set: psys data fetch cifar10"),
    "prepare": (_prepare, "decode, resize and segment images into a store that training reads"),
    "evaluate": (_evaluate, "evaluate and export what a stopped run had trained"),
    "audit": (_audit, "make up a run's books again from its events: every batch applied exactly once?"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exit code 2 and one line for what the user must mend."""
    parser = Parser(
        prog="psys",
        description="The way to and from training with a parameter server (training: torchrun launch/ps.py --help).",
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

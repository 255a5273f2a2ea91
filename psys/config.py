"""Typed settings from a YAML file and the command line; a wrong one is named by its path."""

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsError

from psys.errors import PsysError
from psys.files import read_bounded

FILE_BYTES = 64 * 2**10  # the longest of ours has 2 KB, and PyYAML's time for long numbers grows as their square
SHOWN_ERRORS, SHOWN_CHARACTERS = 10, 200
_MODEL_CONFIG = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


NAME = r"^[\w-][\w.-]*$"
"""What a folder may be called that psys makes: it stays in its place, and is not hidden."""


class Config(BaseModel):
    """Base of every settings class: immutable, and closed to names it does not know."""

    model_config = _MODEL_CONFIG


ConfigT = TypeVar("ConfigT", bound=Config)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are PsysErrors of one line."""

    def error(self, message: str) -> NoReturn:
        raise PsysError(f"{message} (see --help)")


def parse(model: type[ConfigT], argv: Sequence[str], prog: str, default_file: Path | None = None) -> ConfigT:
    """Settings of `model` from its defaults, overlaid by `--config FILE` (YAML), overlaid by flags like `--a.b 3`.

    Without `--config`, `default_file` is read if given. Raises PsysError naming the setting and where it was set.
    """
    # pydantic-settings makes the flags from a BaseSettings class, which by itself would read the environment as well.
    flags_model = type(model.__name__, (model, BaseSettings), {"__doc__": model.__doc__})
    order = "A flag goes before the file of --config, which goes before the default shown with the flag."
    parser = Parser(prog=prog, description=f"{model.__doc__} {order}", allow_abbrev=False)
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"YAML file of settings (default: {default_file or 'none'})"
    )
    source: CliSettingsSource[Any] = CliSettingsSource(
        flags_model,
        root_parser=parser,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_implicit_flags=True,
        cli_kebab_case=True,
    )
    config_file = parser.parse_known_args(argv)[0].config or default_file
    try:
        source(args=list(argv))
        flags = source()
    except SettingsError as error:
        raise PsysError(f"a flag's value cannot be read: {error}") from None
    settings = read_yaml(config_file) if config_file else {}
    where = " and ".join([*([str(config_file)] if config_file else []), *(["flags"] if flags else [])])
    return validate(model, _overlay(settings, flags), where)


def validate(model: type[ConfigT], settings: dict[str, Any], where: str) -> ConfigT:
    """`settings` checked against `model`; raises PsysError with the dotted paths of what is wrong, at most ten."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[:SHOWN_ERRORS]
        wrong = "; ".join(_explain(model, e["loc"], e["msg"], e["input"]) for e in first)
        raise PsysError(f"{wrong} (in {where})") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file (empty file: no settings).

    Raises PsysError if it is missing, has more than `FILE_BYTES`, is not a mapping, or needs more than plain values.
    """
    try:
        settings = yaml.load(read_bounded(path, FILE_BYTES), _Loader)
    except OSError as error:
        raise PsysError(f"cannot read config {path}: {error.strerror}") from None
    except Exception as error:  # where a value is not what its tag says, PyYAML can raise almost anything
        raise PsysError(f"config {path} is not YAML: {' '.join(str(error).split())}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise PsysError(f"config {path}: expected a mapping of settings, found {type(settings).__name__}")
    return settings


def write_yaml(config: Config, path: Path) -> None:
    """Write every setting, defaults included, so that the file alone repeats the run."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """Plain values only: no aliases, a few of which can stand for billions of values, and no number without end."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias: Any = self.get_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="settings have no aliases", problem_mark=alias.start_mark)
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number = super().construct_yaml_int(node)
        if not -(2**63) <= number < 2**63:
            raise yaml.MarkedYAMLError(problem="an integer has at most 64 bits", problem_mark=node.start_mark)
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _overlay(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _overlay(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _explain(model: type[BaseModel], location: tuple[int | str, ...], message: str, value: object) -> str:
    path = _short(".".join(str(part) for part in location))
    if message == "Extra inputs are not permitted":
        return f"unknown setting '{path}'{_suggestion(model, location)}"
    return f"setting '{path}': {message}, got {_short(repr(value))}" if path else message


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _suggestion(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    fields = model.model_fields
    for part in location[:-1]:
        group = fields[str(part)].annotation if part in fields else None
        if not (isinstance(group, type) and issubclass(group, BaseModel)):
            return ""
        fields = group.model_fields
    close = get_close_matches(str(location[-1]), fields, n=1)
    return f", did you mean '{close[0]}'?" if close else f" (known: {', '.join(fields)})"

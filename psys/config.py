"""Typed settings from a YAML file and the command line; a wrong one is named by its path."""

import argparse
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsError

from psys.errors import PsysError
from psys.files import read_bounded
from psys.output import stdout_is_the_result

FILE_BYTES = 64 * 2**10  # the longest of ours has 2 KB, and PyYAML's time for long numbers grows as their square
SHOWN_ERRORS, SHOWN_CHARACTERS, SHOWN_SUGGESTIONS = 10, 200, 3
HELP_COLUMNS = 98
_MODEL_CONFIG = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


NAME = r"^[\w-][\w.-]*$"
"""What a folder may be called that psys makes: it stays in its place, and is not hidden."""


class Config(BaseModel):
    """Base of every settings class: immutable, and closed to names it does not know."""

    model_config = _MODEL_CONFIG
    named_files: ClassVar[Sequence[Path]] = ()
    """the YAML files that `--config NAME` selects"""
    topics: ClassVar[Mapping[str, Sequence[str]]] = {}
    """groups of `--help`: title, settings; a setting without a group is among the options on top"""
    synonyms: ClassVar[Mapping[str, str]] = {}
    """other programs' name for a setting, in kebab case: the setting"""
    examples: ClassVar[Sequence[str]] = ()
    """command lines at the end of `--help`; %(prog)s is the command"""


ConfigT = TypeVar("ConfigT", bound=Config)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are PsysErrors of one line, and that shows examples."""

    def __init__(
        self,
        *,
        description: str | None = None,
        examples: Sequence[str] = (),
        allow_abbrev: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            description=textwrap.fill((description or "").partition("\n\n")[0], HELP_COLUMNS),
            epilog="\n  ".join(["examples:", *examples]) if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=allow_abbrev,
            **options,
        )

    def print_help(self, file: Any = None) -> None:
        with stdout_is_the_result():
            super().print_help(file)

    def error(self, message: str) -> NoReturn:
        raise PsysError(f"{message} (see --help)")


def parse(
    model: type[ConfigT],
    argv: Sequence[str],
    prog: str,
    default_file: Path | None = None,
    base: Mapping[str, Any] = MappingProxyType({}),
) -> ConfigT:
    """Settings of `model` from its defaults, overlaid by `base`, by `--config` (YAML), and by flags like `--a.b-c 3`.

    `--config` is the path of a file, or the name of one in `model.named_files`; without it, `default_file` is read if
    given. `--a.b_c` is `--a.b-c`. `--help` shows the defaults that apply after the file. Raises PsysError naming the
    setting and where it was set.
    """
    argv = [_kebab_case(argument) for argument in argv]
    config_file, label = _config_file(model, argv, prog, default_file)
    settings = overlay(base, read_yaml(config_file) if config_file else {})
    defaults = None if {"-h", "--help"}.isdisjoint(argv) else validate(model, settings, f"config {label}")
    parser = Parser(
        prog=prog,
        usage="%(prog)s [--config FILE] [--SETTING VALUE ...]",
        description=f"{model.__doc__} Flags override the settings of the --config file."
        + (f" The defaults shown are those of config {label}." if label else ""),
        examples=model.examples,
    )
    named = f": one of {', '.join(file.stem for file in model.named_files)}, or a path" if model.named_files else ""
    shown = f" (default: {label})" if label else ""
    parser.add_argument("--config", metavar="FILE", help=f"YAML file of settings{named}{shown}".replace("%", "%%"))
    source = _add_flags(parser, model, defaults)
    if unknown := parser.parse_known_args(argv)[1]:
        raise PsysError(_explain_arguments(model, unknown))
    try:
        flags = source(args=argv)()
    except SettingsError as error:
        raise PsysError(f"a flag's value cannot be read: {error}") from None
    where = " and ".join([*([f"config {label}"] if label else []), *(["flags"] if flags else [])])
    return validate(model, overlay(settings, flags), where)


def validate(model: type[ConfigT], settings: dict[str, Any], where: str) -> ConfigT:
    """`settings` checked against `model`; raises PsysError with the dotted paths of what is wrong, at most ten."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        # A default that is made from a setting is not made if that one is wrong.
        first = [e for e in error.errors() if e["type"] != "default_factory_not_called"][:SHOWN_ERRORS]
        wrong = "; ".join(_explain(model, e["loc"], e["type"], e["msg"], e["input"]) for e in first)
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
    """Write every setting, defaults included, so that the file alone repeats the run; whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    temporary.replace(path)


class _Loader(yaml.SafeLoader):
    """Plain values only: no aliases, a few of which can stand for billions of values, and no number without end.

    A key that a mapping has twice is refused: PyYAML would take its last value.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias: Any = self.get_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="settings have no aliases", problem_mark=alias.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"'{key.value}' is there twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number = super().construct_yaml_int(node)
        if not -(2**63) <= number < 2**63:
            raise yaml.MarkedYAMLError(problem="an integer has at most 64 bits", problem_mark=node.start_mark)
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, group by group."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = overlay(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _config_file(
    model: type[Config], argv: Sequence[str], prog: str, default_file: Path | None
) -> tuple[Path | None, str]:
    """The file of `--config` or `default_file`, and what to call it in a message."""
    parser = Parser(prog=prog, add_help=False)
    parser.add_argument("--config")
    value = parser.parse_known_args(argv)[0].config
    if value is None:
        named = default_file in model.named_files
        return default_file, "" if default_file is None else default_file.stem if named else str(default_file)
    names = {file.stem: file for file in model.named_files}
    if not names or "/" in value or value.endswith((".yaml", ".yml")):
        return Path(value), value
    if value not in names:
        close = get_close_matches(value, names, n=1)
        meant = f"did you mean '{close[0]}'?" if close else f"the names are {', '.join(names)};"
        raise PsysError(f"unknown config '{value}': {meant} the path of a file has a / or ends in .yaml")
    return names[value], value


def _kebab_case(argument: str) -> str:
    """`--batch_size=a_b` as `--batch-size=a_b`."""
    name, equals, value = argument.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else argument


def _add_flags(parser: Parser, model: type[Config], defaults: Config | None) -> CliSettingsSource[Any]:
    """Give the parser a flag for each setting of `model`, in groups, with `defaults` in the help."""
    fields = dict(_leaves(model))
    groups: dict[str, Any] = {}
    for title, names in model.topics.items():
        group = parser.add_argument_group(title)
        groups |= dict.fromkeys(names, group)

    def add(container: Any, *flags: str, dest: str, metavar: str = "", **options: Any) -> None:
        if dest not in fields:  # a group as a whole, in JSON
            return
        if metavar:
            options["metavar"] = metavar if metavar[0] == "{" else metavar.upper() if metavar.isalpha() else "JSON"
        shown = _shown_default(fields[dest], dest, defaults)
        options["help"] = f"{fields[dest].description or ''}{shown}".replace("%", "%%")
        groups.get(dest, container).add_argument(*flags, dest=dest, **options)

    # pydantic-settings makes the flags from a BaseSettings class, which by itself would read the environment as well.
    return CliSettingsSource(
        type(model.__name__, (model, BaseSettings), {"__doc__": model.__doc__}),
        root_parser=parser,
        add_argument_method=add,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_implicit_flags=True,
        cli_kebab_case=True,
        cli_use_class_docs_for_groups=True,
    )


def _shown_default(field: FieldInfo, name: str, defaults: Config | None) -> str:
    *above, last = name.split(".")
    owner: Any = defaults
    for part in above:
        owner = getattr(owner, part, None)
    value = getattr(owner, last, None)
    if value in (None, ()) or (field.default_factory and last not in owner.model_fields_set):
        return ""  # the description says what applies
    if isinstance(value, bool):
        return f" (default: {'yes' if value else 'no'})"
    return f" (default: {format(value, 'g') if isinstance(value, float) else value})"


def _leaves(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted names and fields of all settings that are not groups."""
    for name, field in model.model_fields.items():
        if isinstance(group := field.annotation, type) and issubclass(group, BaseModel):
            yield from _leaves(group, f"{above}{name}.")
        else:
            yield f"{above}{name}", field


def _explain(model: type[Config], location: tuple[int | str, ...], kind: str, message: str, value: object) -> str:
    path = _short(".".join(str(part) for part in location))
    if kind == "extra_forbidden":
        meant = " or ".join(f"'{name}'" for name in closest_settings(model, path))
        return f"unknown setting '{path}'" + (f", did you mean {meant}?" if meant else " (see --help)")
    if kind == "missing":
        return f"setting '{path}': {message}"  # the value is that of all settings
    if kind == "model_type":
        below = next((f", such as '{name}'" for name, _ in _leaves(model) if name.startswith(f"{path}.")), "")
        message = f"expected a mapping of settings{below}"
    message = message.removeprefix("Value error, ")
    if isinstance(value, dict) and kind == "value_error":  # the message is about several settings of a group
        return f"setting '{path}': {message}" if path else message
    return f"setting '{path}': {message}, got {_short(repr(value))}" if path else message


def _explain_arguments(model: type[Config], unknown: Sequence[str]) -> str:
    flags = [argument.partition("=")[0] for argument in unknown if re.match("--?[a-zA-Z]", argument)]
    if not flags:
        return f"unexpected argument '{_short(unknown[0])}' (see --help)"
    return "; ".join(_explain_flag(model, flag) for flag in flags[:SHOWN_ERRORS])


def _explain_flag(model: type[Config], flag: str) -> str:
    no, name = re.fullmatch("--?(no-)?(.*)", flag, re.DOTALL).groups()  # type: ignore[union-attr]
    found = closest_settings(model, name)
    switches = [name for name, field in _leaves(model) if field.annotation in (bool, bool | None)]
    meant = [f"--{no if no and each in switches else ''}{each}".replace("_", "-") for each in found]
    return f"unknown flag {_short(flag)}" + (f": did you mean {' or '.join(meant)}?" if meant else " (see --help)")


def closest_settings(model: type[Config], name: str) -> list[str]:
    """Dotted names of the settings that a user may have meant by `name`, at most three.

    In this order: a synonym, a setting of another group, the first settings of a group, the closest spelling.
    """
    known = {setting.replace("_", "-"): setting for setting, _ in _leaves(model)}
    wanted = name.lower().replace("_", "-")
    last = wanted.rpartition(".")[2]
    if synonym := model.synonyms.get(wanted, model.synonyms.get(last)):
        return [synonym]
    same = [setting for kebab, setting in known.items() if kebab.rpartition(".")[2] == last]
    if found := same or [setting for kebab, setting in known.items() if kebab.startswith(f"{last}.")]:
        return found[:SHOWN_SUGGESTIONS]
    spellings = {kebab.rpartition(".")[2]: setting for kebab, setting in known.items()} | known
    spellings |= {kebab.partition(".")[0]: setting for kebab, setting in reversed(known.items()) if "." in kebab}
    return [spellings[close] for close in get_close_matches(wanted, spellings, n=1, cutoff=0.7)]


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."

"""Settings that follow the cluster: by mode and number of workers, where nobody set them (docs/rates.md)."""

from typing import Any, NamedTuple, TypeVar

from psys.ps.schedule import rate_factor
from psys.run.config import RunConfig

ConfigT = TypeVar("ConfigT", bound=RunConfig)


class Default(NamedTuple):
    """What a setting is by default."""

    value: Any
    reason: str  # in one sentence


def defaults(config: RunConfig) -> dict[str, Default]:
    """By dotted name: the settings that follow the mode and the number of workers of `config`."""
    workers = config.workers or 1
    found = {}
    if config.mode == "async":
        found["schedule.scaling"] = Default("none", "an update has one gradient, for which the rate is meant")
    else:
        found["schedule.scaling"] = Default("sqrt", f"the mean of {workers} gradients has less noise")
    return found


def resolved(config: ConfigT) -> ConfigT:
    """`config` with the defaults of its mode and number of workers for the settings that are None."""
    open_settings = {name: default.value for name, default in defaults(config).items() if _get(config, name) is None}
    return _with(config, {**open_settings, "followed": tuple(open_settings)})


def reopened(config: ConfigT) -> ConfigT:
    """`config` before it was resolved: a run resumed in another mode, or on more workers, follows these."""
    return _with(config, {**dict.fromkeys(config.followed), "followed": ()})


def rate_in_words(config: RunConfig) -> str:
    """The learning rate in use, and why, of a resolved `config`."""
    schedule, gradients = config.schedule, config.gradients_of_update
    text = f"{schedule.learning_rate:g} for one worker's batch"
    if gradients > 1:
        factor = f"{rate_factor(schedule.scaling, gradients):.3g}"
        text += f", x {factor} for the mean of {gradients} gradients (scaling {schedule.scaling}, docs/rates.md)"
    return text


def _get(config: RunConfig, name: str) -> Any:
    group, _, setting = name.partition(".")
    return getattr(getattr(config, group), setting)


def _with(config: ConfigT, settings: dict[str, Any]) -> ConfigT:
    """`config` with these settings, by dotted name."""
    changed: dict[str, Any] = {}
    for name, value in settings.items():
        group, _, setting = name.partition(".")
        if setting:
            value = changed.get(group, getattr(config, group)).model_copy(update={setting: value})
        changed[group] = value
    return config.model_copy(update=changed)

"""Settings that follow the cluster: by mode and number of workers, where nobody set them (docs/rates.md)."""

from typing import Any, TypeVar

from psys.ps.schedule import Scaling, rate_factor
from psys.run.config import RunConfig

ConfigT = TypeVar("ConfigT", bound=RunConfig)

LOOK_AHEAD_UP_TO = 2
"""gradients under way in async, one a worker without prefetch, for which looking ahead alone is the default"""


def defaults(config: RunConfig) -> dict[str, Any]:
    """By dotted name: the settings that follow the mode, the optimizer and the number of workers of `config`."""
    workers, optimizer = config.workers or 1, config.optimizer
    sgd = optimizer.kind == "sgd"
    late = sgd and config.mode == "async" and workers * (1 + config.prefetch) > LOOK_AHEAD_UP_TO
    return {
        "schedule.scaling": _scaling(config),
        "compensation.gap_aware": late,
        "optimizer.momentum_per_worker": late
        and optimizer.nesterov
        and optimizer.look_ahead
        and not config.sync_epochs,
    }


def _scaling(config: RunConfig) -> Scaling:
    if config.local_steps > 1:
        return "none"  # the parameters that the workers reach are averaged
    # Optimizers that divide by the size of gradients follow the square root (Malladi et al. 2022).
    return "capped" if config.optimizer.kind == "sgd" else "sqrt"


def resolved(config: ConfigT) -> ConfigT:
    """`config` with the defaults of its mode and number of workers for the settings that are None."""
    open_settings = {name: value for name, value in defaults(config).items() if _get(config, name) is None}
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
        text += f", x {factor} for the mean of {gradients} gradients (scaling {schedule.scaling}; docs/rates.md)"
    late = ["DANA"] * bool(config.optimizer.momentum_per_worker) + ["Gap-Aware"] * bool(config.compensation.gap_aware)
    return f"{text}, late gradients by {' and '.join(late)} (docs/rates.md)" if late else text


def _get(config: RunConfig, name: str) -> Any:
    group, _, setting = name.partition(".")
    return getattr(getattr(config, group), setting)


def _with(config: ConfigT, settings: dict[str, Any]) -> ConfigT:
    """`config` with these settings, by dotted name."""
    changed: dict[str, Any] = {}
    for name, value in settings.items():
        group, _, setting = name.partition(".")
        changed[group] = getattr(config, group).model_copy(update={setting: value}) if setting else value
    return config.model_copy(update=changed)

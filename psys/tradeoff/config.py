"""What a study compares: its arms, conditions and seeds, and how many times and where its trials run."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from psys.config import NAME, Config, overlay, validate
from psys.errors import PsysError
from psys.run.config import CONFIGS, RunConfig
from psys.run.faults import FaultPlan
from psys.run.network import USUAL, build_network

RunSettings = dict[str, Any]
Share = Annotated[float, Field(gt=0, le=1)]

_NAME_BYTES = 64  # of an arm or a condition: a trial's files are named by both and by less than 60 bytes more, of 255

_OF_THE_STUDY = {
    "name": "the study names its runs",
    "runs": "runs lie in the study's directory",
    "seed": "seeds are the study's 'seeds'",
    "faults": "faults and slow workers are the study's 'stragglers'",
    "evaluate_every": "a trial is evaluated after its training",
    "early_stopping": "all trials train for their epochs",
    "remote_servers": "a trial runs on one machine",
    "remote_workers": "a trial runs on one machine",
}
_OF_BASE = {
    "source": "arms are compared image by image",
    "store": "arms are compared image by image",
    "validation_share": "all arms have the same held-out images",
}
_OF_THE_ARMS = dict.fromkeys(
    ("workers", "epochs", "snapshot_epochs", "image_size"), "make an arm of each value: the report compares it"
)


def _seeds(value: object, first: int) -> object:
    """A list of seeds, or their number: from `first` on; a flag's value is text."""
    if isinstance(value, str):
        value = [part.strip() for part in value.strip("[]").split(",")] if not value.isdecimal() else int(value)
    listed = value if isinstance(value, list | tuple) else [value]
    if not isinstance(value, int | list | tuple) or any(isinstance(each, bool) for each in listed):
        raise ValueError("expected a list of whole numbers from 0 on, or how many: 10")
    if isinstance(value, int) and not 0 < value <= 1000:
        raise ValueError("a study needs at least one seed, and at most 1000")
    return tuple(range(first, first + value)) if isinstance(value, int) else value


_FIRST_TUNING_SEED = 1000
_SeedTuple = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], NoDecode, Field(min_length=1)]
Seeds = Annotated[_SeedTuple, BeforeValidator(partial(_seeds, first=0))]
TuningSeeds = Annotated[_SeedTuple, BeforeValidator(partial(_seeds, first=_FIRST_TUNING_SEED))]


class TuningConfig(Config):
    """One setting that is chosen for each arm, by accuracy on held-out images, before the study's trials."""

    setting: str
    """dotted name, such as schedule.learning_rate"""
    values: Annotated[tuple[Any, ...], Field(min_length=1)] | dict[str, tuple[Any, ...]]
    """values that each arm tries, or those of each arm: equally many"""
    seeds: TuningSeeds = (_FIRST_TUNING_SEED,)
    """a list, or the number of seeds: from 1000 on; each value is tried with each of them, in the first condition"""

    def values_of(self, arm: str) -> tuple[Any, ...]:
        """The values that `arm` tries."""
        return self.values[arm] if isinstance(self.values, dict) else self.values


class StudyConfig(Config):
    """Compare arms, which are settings of runs, over conditions and seeds: accuracy against wall-clock."""

    named_files: ClassVar[Sequence[Path]] = tuple(
        CONFIGS / f"{name}.yaml" for name in ("ablation", "tradeoff", "tradeoff-cifar10")
    )
    topics: ClassVar[Mapping[str, Sequence[str]]] = {
        "study": ("name", "studies"),
        "trials": ("base", "arms", "reference", "stragglers", "seeds", "tuning"),
        "report": ("targets", "margin"),
        "machine": ("idle_wait", "trial_timeout", "ray_address", "cores_per_trial", "gpus_per_trial"),
        "this command": ("retry_failed", "dry_run"),
    }
    examples: ClassVar[Sequence[str]] = (
        "%(prog)s --config tradeoff --dry-run",
        "%(prog)s --config STUDY.yaml --seeds 10",
        "%(prog)s --config STUDY.yaml --ray-address HOST:6379",
    )

    name: str = Field(pattern=NAME)
    """directory of the study below `studies`"""
    studies: Path = Path("studies")
    """where study directories are made"""
    base: RunSettings = Field({})
    """settings of all runs, as `psys train` has them"""
    arms: dict[str, RunSettings] = Field(min_length=1)
    """name: settings over those of `base`, nested or by dotted names"""
    reference: str = Field(default_factory=lambda settings: next(iter(settings.get("arms") or {"": None})))
    """the arm that the others are compared with; by default the first"""
    stragglers: dict[str, dict[str, Any]] = Field({"uniform": {}}, min_length=1)
    """condition: the faults and slow workers of its runs, as {slow_workers: [{worker: 0, factor: 5}]}"""
    seeds: Seeds
    """a list, or the number of seeds: from 0 on"""
    targets: tuple[Share, ...] = ()
    """held-out accuracies, shares, whose time the report states"""
    margin: float | None = Field(None, gt=0, lt=1)
    """difference in test accuracy, a share, within which arms count as equivalent; fixed before the study"""
    tuning: TuningConfig | None = None
    """a setting that each arm chooses by held-out accuracy: {setting: schedule.learning_rate, values: [0.05, 0.1]}"""
    idle_wait: float = Field(30.0, ge=0, le=3600)
    """seconds that a trial waits at most for a machine that is busy with other programs"""
    trial_timeout: float | None = Field(None, gt=0)
    """seconds after which a trial is ended, and has failed; by default it is waited for"""
    ray_address: str | None = None
    """HOST:PORT of a running Ray cluster whose nodes run the trials; they have psys and the source or the store"""
    cores_per_trial: int | None = Field(None, ge=1)
    """cores of a trial on the Ray cluster; by default the arm's workers, times its threads if it sets them"""
    gpus_per_trial: float = Field(0.0, ge=0)
    """GPUs of a trial on the Ray cluster"""

    @model_validator(mode="after")
    def _names_are_directories(self) -> Self:
        for kind, names in (("arm", self.arms), ("condition", self.stragglers)):
            for name in names:
                if not name.replace("-", "").replace("_", "").isalnum() or name[0] == "-":
                    raise ValueError(f"'{name}' cannot name a directory: name {kind}s in letters, digits, - and _")
                if len(name.encode()) > _NAME_BYTES:
                    raise ValueError(f"{kind} '{name[:20]}...' is too long to name files: at most {_NAME_BYTES} bytes")
        return self

    @model_validator(mode="after")
    def _is_a_comparison(self) -> Self:
        if self.reference not in self.arms:
            raise ValueError(f"'reference' is '{self.reference}', expected an arm: {', '.join(self.arms)}")
        tuning_seeds = self.tuning.seeds if self.tuning else ()
        for name, each in (("seeds", self.seeds), ("tuning.seeds", tuning_seeds), ("targets", self.targets)):
            if repeated := {value for value in each if each.count(value) > 1}:
                raise ValueError(f"'{name}' has {min(repeated)} more than once")
        if both := set(self.seeds) & set(tuning_seeds):
            raise ValueError(
                f"'tuning.seeds' has {min(both)}, which is in 'seeds': a value would be measured again by "
                "trials that chose it"
            )
        return self

    @model_validator(mode="after")
    def _tuning_has_equal_budgets(self) -> Self:
        if self.tuning is None:
            return self
        if isinstance(self.tuning.values, dict) and self.tuning.values.keys() != self.arms.keys():
            raise ValueError(f"'tuning.values' needs values for each of {', '.join(self.arms)}, and no other")
        tried = [self.tuning.values_of(arm) for arm in self.arms]
        if len({len(values) for values in tried}) != 1 or not tried[0]:
            raise ValueError("'tuning.values' needs equally many values, at least one, for each arm")
        if any(value is None for values in tried for value in values):
            raise ValueError("'tuning.values' has null, which is no value")
        if any(values.count(value) > 1 for values in tried for value in values):
            raise ValueError("'tuning.values' has a value more than once")
        return self

    @model_validator(mode="after")
    def _runs_are_valid(self) -> Self:
        """Raises PsysError, which names the arm or the condition, for settings that no run can have."""
        tuned = {self.tuning.setting: None} if self.tuning else {}
        for where, settings, reserved in (
            ("base", self.base, _OF_THE_STUDY),
            *((f"arm '{arm}'", settings, _OF_THE_STUDY | _OF_BASE) for arm, settings in self.arms.items()),
            ("tuning", tuned, _OF_THE_STUDY | _OF_BASE | _OF_THE_ARMS),
        ):
            for name in nested(settings, where).keys() & reserved.keys():
                raise PsysError(f"'{name}' cannot be set in {where}: {reserved[name]}")
        runs = {arm: self.run_config(arm) for arm in self.arms}
        points = {arm: run.epochs / run.snapshot_epochs for arm, run in runs.items()}
        for arm, run in runs.items():
            try:
                build_network(run, 2, USUAL)
            except PsysError as error:
                where = f"arm '{arm}'" if "model" in self.arms[arm] else "base"
                raise PsysError(f"{error} (in {where})") from None
            for value in self.tuning.values_of(arm) if self.tuning else ():
                self.run_config(arm, value)
            if points[arm] != points[self.reference]:
                raise PsysError(
                    f"arm '{arm}' has {points[arm]:g} evaluation points, arm '{self.reference}' has "
                    f"{points[self.reference]:g}: set 'snapshot_epochs', for the best of equally many is to be compared"
                )
        for condition in self.stragglers:
            self._check_condition(condition)
        return self

    def _check_condition(self, condition: str) -> None:
        plan = validate(FaultPlan, self.stragglers[condition], f"condition '{condition}'").model_dump()
        named = [each["worker"] for entries in plan.values() for each in entries if each["worker"] is not None]
        for arm in self.arms:
            workers = self.run_config(arm).workers or 0
            if max(named, default=0) >= workers:
                raise PsysError(
                    f"condition '{condition}' names worker {max(named)}, but arm '{arm}' has workers 0 to {workers - 1}"
                )

    def settings(self, arm: str, value: object = None) -> RunSettings:
        """Settings of the runs of `arm`, nested; `value`: of the setting that is tuned. Other defaults are left out."""
        settings = {"export": False} | overlay(nested(self.base), nested(self.arms[arm]))
        if self.tuning and value is not None:
            settings = overlay(settings, nested({self.tuning.setting: value}))
        return settings | {"evaluate_every": 0}

    def run_config(self, arm: str, value: object = None) -> RunConfig:
        """The runs of `arm`. Raises PsysError for settings that a run cannot have."""
        where = f"arm '{arm}'" if value is None else f"tuning of arm '{arm}'"
        config = validate(RunConfig, self.settings(arm, value), where)
        if config.workers is None:
            raise PsysError(f"set 'workers' in base or in arm '{arm}': the number must not depend on the machine")
        if value is not None and config.validation_share == 0:
            raise PsysError("tuning needs 'validation_share' above 0 in base: test images choose nothing")
        return config


class StudyCommand(StudyConfig):
    __doc__ = StudyConfig.__doc__

    retry_failed: bool = False
    """run failed trials again"""
    dry_run: bool = False
    """show the trials that are to run, and run nothing"""

    def study(self) -> StudyConfig:
        """The settings of the study without those of this command."""
        names = self.model_fields_set & StudyConfig.model_fields.keys()
        return StudyConfig(**{name: getattr(self, name) for name in names})


def nested(settings: Mapping[str, Any], where: str = "") -> RunSettings:
    """Settings by dotted names as settings in groups: {"a.b": 1} is {"a": {"b": 1}}.

    Raises PsysError, which names `where`, for a setting that is there twice, or is a group and has a value.
    """
    result: RunSettings = {}
    for name, value in settings.items():
        for part in reversed(name.split(".")):
            value = {part: value}
        result = _joined(result, value, where)
    return result


def _joined(one: RunSettings, other: RunSettings, where: str, above: str = "") -> RunSettings:
    joined = one | other
    for name in one.keys() & other.keys():
        if not (isinstance(one[name], dict) and isinstance(other[name], dict)):
            raise PsysError(f"'{above}{name}' is set twice, in a group and by a dotted name (in {where})")
        joined[name] = _joined(one[name], other[name], where, f"{above}{name}.")
    return joined

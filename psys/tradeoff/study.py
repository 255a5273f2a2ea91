"""`psys tradeoff`: a study is run, or continued where it was stopped, and its report is written."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from psys.config import read_yaml, validate, write_yaml
from psys.data.store import PreparedStore
from psys.errors import PsysError, say
from psys.files import write_json
from psys.run.config import RunConfig
from psys.run.environment import environment
from psys.run.faults import FaultPlan
from psys.run.lock import run_lock
from psys.tradeoff.config import StudyCommand, StudyConfig
from psys.tradeoff.plan import Trial, choose, study_trials, tuning_trials
from psys.tradeoff.progress import StudyProgress, remaining
from psys.tradeoff.record import TrialLog
from psys.tradeoff.report import write_report
from psys.tradeoff.trial import Finished, end_trials, read_settings, run_trial, stop_signals_interrupt


def run_study(command: StudyCommand, console: Console) -> bool:
    """Run the trials of a study that have not finished, and write its report. Returns whether all trials are done.

    SIGINT, SIGTERM and SIGHUP end the trial that runs, which the next start repeats, and raise KeyboardInterrupt when
    the report of the finished trials is written. Raises PsysError for what the user must mend.
    """
    config = command.study()
    folder = config.studies / config.name
    _check_stores(config)
    if command.dry_run:
        _show_plan(config, _checked_log(command, folder), console)
        return True
    with stop_signals_interrupt(), run_lock(folder, what="study"):
        log = _checked_log(command, folder)
        if command.retry_failed:
            log.write()
        end_trials(folder)
        write_yaml(config, folder / "study.yaml")
        write_json(environment(), folder / "environment.json")
        _prepare(config.run_config(config.reference))
        _check_stores(config)
        try:
            _run_missing(config, log, console)
        finally:
            if log.records:
                write_report(folder)
        console.print(f"the report is {folder / 'report.html'}", soft_wrap=True, highlight=False)
        return all(record.status == "done" for record in log.records.values())


def _checked_log(command: StudyCommand, folder: Path) -> TrialLog:
    """The finished trials, which `command` can go on with. Raises PsysError if it cannot."""
    file = folder / "study.yaml"
    if folder.exists() and not file.exists() and (not folder.is_dir() or set(os.listdir(folder)) - {"lock"}):
        raise PsysError(f"{folder} holds other files than those of a study: choose another --name")
    log = TrialLog(folder)
    if command.retry_failed:
        log.forget_failed()
    check_unchanged(command.study(), log)
    return log


def _run_missing(config: StudyConfig, log: TrialLog, console: Console) -> None:
    with StudyProgress(console) as progress:
        # The study's trials are known when those that choose their settings have finished.
        while missing := [trial for trial in _trials(config, log) if trial.name not in log.records]:
            total = len(_names(config, log))
            for trial, finished in _run(config, log, missing, progress, total):
                progress.report(log.add(trial, finished), log, total)
            check_unchanged(config, log)


def _run(
    config: StudyConfig, log: TrialLog, trials: list[Trial], progress: StudyProgress, total: int
) -> Iterator[tuple[Trial, Finished]]:
    """Run `trials`, and yield each with how it went."""
    if config.ray_address:
        from psys.tradeoff.on_ray import run_trials

        progress.show(log, total, f"trials on the Ray cluster at {config.ray_address}")
        yield from run_trials(config, trials, log.folder)
        return
    for trial in trials:
        progress.show(log, total, trial.name)
        yield trial, run_trial(trial, log.folder, config.idle_wait, config.trial_timeout)


def _tuned(config: StudyConfig, log: TrialLog) -> bool:
    return all(trial.name in log.records for trial in tuning_trials(config))


def _trials(config: StudyConfig, log: TrialLog) -> list[Trial]:
    """The trials that choose settings and, when these have finished, the study's: of arms that have a setting."""
    tuning = tuning_trials(config)
    if not _tuned(config, log):
        return tuning
    chosen = choose(config, {trial.name: _held_out_accuracy(log, trial.name) for trial in tuning})
    return tuning + [trial for trial in study_trials(config, chosen) if not tuning or trial.arm in chosen]


def _held_out_accuracy(log: TrialLog, name: str) -> float | None:
    if log.records[name].status == "failed":
        return None
    return float(log.run(name).result()["best"]["validation_accuracy"])


def _names(config: StudyConfig, log: TrialLog) -> list[str]:
    """Names of all trials, also of those whose settings are not known yet."""
    waiting = [] if _tuned(config, log) else study_trials(config, {})
    return [trial.name for trial in (*_trials(config, log), *waiting)]


def check_unchanged(config: StudyConfig, log: TrialLog) -> None:
    """Raises PsysError if finished trials are not those of the study: arms, conditions and seeds can only be added.

    Once a trial has finished that is not of the tuning, margin and reference are fixed, and what its arm tries.
    """
    another = "choose another --name for a changed study"
    names = set(_names(config, log))
    if gone := [record for record in log.records.values() if record.trial not in names]:
        what = f"arm '{gone[0].arm}', condition '{gone[0].condition}', seed {gone[0].seed}"
        raise PsysError(f"{log.folder} has a finished trial of {what}, which is not in the study any more: {another}")
    begun = {record.arm for record in log.records.values() if record.tuning is None}
    if begun and (file := log.folder / "study.yaml").exists():
        before = read_yaml(file)
        for name in ("margin", "reference"):
            if before.get(name) != getattr(config, name):
                raise PsysError(
                    f"'{name}' was {before.get(name)} when trials of {log.folder} finished, and is fixed: {another}"
                )
    for trial in _trials(config, log):
        if trial.name not in log.records:
            if trial.arm in begun and trial.tuning is not None:
                raise PsysError(
                    f"{log.folder} has finished trials of arm '{trial.arm}' that were not tuned by {trial.name}: "
                    f"what an arm tries is fixed before its trials; {another}"
                )
            continue
        then, faults = read_settings(trial.name, log.folder)
        now = validate(RunConfig, trial.settings, f"arm '{trial.arm}'")
        if changed := list(_differences(then.model_dump(), now.model_dump())):
            what = f"arm '{trial.arm}' with another {', '.join(changed)}"
        elif faults != validate(FaultPlan, trial.faults, f"condition '{trial.condition}'"):
            what = f"condition '{trial.condition}' with other stragglers"
        else:
            continue
        raise PsysError(f"{log.folder} has finished trials of {what}: {another}")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Dotted names of the settings that differ."""
    for name, value in now.items():
        if isinstance(value, dict) and isinstance(before[name], dict):
            yield from _differences(before[name], value, f"{above}{name}.")
        elif value != before[name]:
            yield f"{above}{name}"


def _check_stores(config: StudyConfig) -> None:
    """Raises PsysError if the store is damaged, lacks an arm's images, or is missing and cannot be prepared."""
    run = config.run_config(config.reference)
    if not run.store.exists():
        if run.source is None:
            raise PsysError(f"no prepared store at {run.store}, and no 'source' to prepare it from")
        # Imported here: a study of prepared stores needs neither Ray nor OpenCV.
        try:
            from psys.data.source import open_source
        except ModuleNotFoundError as error:
            raise PsysError(
                f"no prepared store at {run.store}, and to prepare it needs {error.name}, which is not installed here"
            ) from None

        open_source(run.source, Path("datasets"), test_share=0.2, seed=0)
        return
    PreparedStore.open(run.store)
    for size, arm in {config.run_config(arm).image_size: arm for arm in config.arms}.items():
        try:
            PreparedStore.open(run.store, size)
        except PsysError as error:
            raise PsysError(f"{error} (in arm '{arm}')") from None


def _prepare(run: RunConfig) -> None:
    if run.store.exists():
        return
    from psys.segment.prepare import PrepareConfig, prepare

    assert run.source is not None
    say(f"{run.store} does not exist yet: it is prepared from {run.source} (once)")
    size = {"image_size": run.image_size} if run.image_size else {}
    prepare(PrepareConfig(source=run.source, stores=run.store.parent, name=run.store.name, **size))


def _show_plan(config: StudyConfig, log: TrialLog, console: Console) -> None:
    names = _names(config, log)
    for name in names:
        status = log.records[name].status if name in log.records else "to run"
        console.print(f"{name}: {status}", soft_wrap=True, highlight=False)
    to_run = len(names) - len(log.records)
    seconds = remaining(list(log.records.values()), len(names))
    estimate = f": about {seconds / 60:.0f} min, as long as trials so far took" if seconds else ""
    console.print(f"{to_run} of {len(names)} trials are to run{estimate}", highlight=False)

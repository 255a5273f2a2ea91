"""Which trials of a study have finished: trials.jsonl, one line for each."""

import json
import os
from pathlib import Path
from typing import Any, Literal

from psys.config import Config, validate
from psys.errors import PsysError
from psys.run.directory import RunDirectory
from psys.tradeoff.plan import Trial
from psys.tradeoff.trial import Finished


class TrialRecord(Config):
    """A finished trial."""

    trial: str
    """name of the trial and of its directory in trials/"""
    arm: str
    condition: str
    seed: int
    tuning: Any
    """the value that it tried of the setting that is tuned; null: it is one of the study's trials"""
    status: Literal["done", "failed"]
    reason: str | None
    """why it failed, in one line"""
    started: float
    """seconds since 1970, as `ended`"""
    ended: float
    load: float
    """share of the machine's cores that were busy before the start, 0 to 1"""
    host: str

    @property
    def seconds(self) -> float:
        """Duration, with the start of processes and the evaluation."""
        return self.ended - self.started


class TrialLog:
    """The finished trials of the study in `folder`, by name, in the order of their ends.

    A last line without an end is not read, and neither is a trial that is done but whose results are gone. Raises
    PsysError if another line is not a trial.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._path = folder, folder / "trials.jsonl"
        *lines, _ = self._path.read_bytes().split(b"\n") if self._path.exists() else [b""]
        found = [self._read(number, line) for number, line in enumerate(lines, start=1)]
        self.records = {each.trial: each for each in found if each.status == "failed" or self.run(each.trial).complete}

    def run(self, name: str) -> RunDirectory:
        """The run of a trial."""
        return RunDirectory(self.folder / "trials" / name)

    def add(self, trial: Trial, finished: Finished) -> TrialRecord:
        """Record a finished trial, whose results are on the disk before the record is."""
        status = "done" if finished.reason is None else "failed"
        of_trial = {name: getattr(trial, name) for name in ("arm", "condition", "seed", "tuning")}
        record = TrialRecord(trial=trial.name, status=status, **of_trial, **finished._asdict())
        self.records[trial.name] = record
        os.sync()
        self.write()
        return record

    def forget_failed(self) -> None:
        """Take failed trials out of `records`: they are to run again, but not those of a tuning that was used since."""
        tuned = {each.arm for each in self.records.values() if each.status == "done" and each.tuning is None}
        self.records = {
            name: each
            for name, each in self.records.items()
            if each.status == "done" or (each.arm in tuned and each.tuning is not None)
        }

    def _read(self, number: int, line: bytes) -> TrialRecord:
        where = f"{self._path} line {number}"
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            raise PsysError(f"{where} is not a trial: the file was changed after it was written") from None
        return validate(TrialRecord, content, where)

    def write(self) -> None:
        """Write `records`, whole or not at all."""
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(each.model_dump()) + "\n" for each in self.records.values())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)

"""Configs of studies, as a user writes them."""

from pathlib import Path
from typing import Any

import yaml

from psys.config import validate
from psys.tradeoff.config import StudyConfig


def study_settings(store: Path | str, **changes: Any) -> dict[str, Any]:
    """Two arms of runs of a second on a small store, with one seed."""
    settings: dict[str, Any] = {
        "name": "s",
        "base": {"store": str(store), "model": "mlp8", "workers": 1, "threads": 1, "epochs": 1, "precision": "fp32"},
        "arms": {"first": {"mode": "sync"}, "second": {"mode": "async"}},
        "seeds": 1,
        "idle_wait": 0,
    }
    return settings | changes


def study(**changes: Any) -> StudyConfig:
    return validate(StudyConfig, study_settings("no/store", **changes), "test")


def write_study(path: Path, store: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(study_settings(store, **changes), sort_keys=False), encoding="utf-8")
    return path

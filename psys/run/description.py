"""What a program needs to know to use a trained network without psys: model.json, and the metadata of its files."""

import json
from collections.abc import Mapping
from importlib.metadata import version as version_of
from typing import Any

from psys.data.store import PreparedStore
from psys.run.directory import RunDirectory

_INPUT = "float32 (batch, 3, height, width): RGB from 0 to 1, minus `mean`, divided by `std`"


def describe_model(run: RunDirectory, store: PreparedStore, version: int) -> dict[str, Any]:
    """The description of the network that the run had at a version, as JSON values.

    image_size: [height, width]; mean, std: of the channels R, G, B of pixel values from 0 to 1.
    """
    return {
        "model": run.config().model,
        "run": run.path.name,
        "version": version,
        "psys": version_of("psys"),
        "classes": list(store.classes),
        "image_size": list(store.image_size),
        "mean": list(store.channel_mean),
        "std": list(store.channel_std),
        "input": _INPUT,
    }


def as_metadata(description: Mapping[str, Any]) -> dict[str, str]:
    """The description as the metadata of a file, which holds strings only: lists and numbers as JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in description.items()}

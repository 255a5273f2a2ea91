"""Data sets packed many images to a file (Parquet, tars): a file's split by its name, an image's class by its label."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from psys.data.dataset import DatasetSplit
from psys.data.reference import Members
from psys.errors import PsysError
from psys.files import read_bounded

# The words that Hugging Face's data sets name their splits by.
SPLIT_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
CLASS_FILES = ("classes.txt", "classes.json")
CLASSES_BYTES, MOST_CLASSES = 2**22, 100_000
_SHOWN = 5


class PackedSplit(NamedTuple):
    """What a reader found in the files of a split: each image's label is `texts[codes[i]]`."""

    images: Members
    codes: NDArray[np.int64]  # (N,)
    texts: Sequence[str]
    names: Sequence[str] = ()  # of the classes, where the files tell them: an integer label is a place among these


def find_packed(path: Path, suffix: str) -> list[Path]:
    """The file `path`, or the files of that suffix in the folder `path` and in the folders just below it, sorted."""
    if path.is_file():
        return [path] if path.suffix == suffix else []
    found = [*path.glob(f"*{suffix}"), *path.glob(f"*/*{suffix}")]
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))


def by_split(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Files by train, validation or test, as their names say or else their folders'; all are train if none says.

    Raises PsysError if only some say which.
    """
    splits: dict[str, list[Path]] = {}
    silent: list[Path] = []
    for file in files:
        parts = reversed(file.relative_to(root).parts) if file != root else [file.name]
        words = (set(re.split(r"[^a-z]+", part.lower())) for part in parts)
        split = next((name for said in words for name, known in SPLIT_WORDS.items() if said & known), None)
        (silent if split is None else splits.setdefault(split, [])).append(file)
    if splits and silent:
        raise PsysError(f"{silent[0]} names no split (train, validation, test), other files of {root} do")
    return splits or {"train": silent}


def classified(parts: dict[str, PackedSplit], path: Path) -> tuple[tuple[str, ...], dict[str, DatasetSplit]]:
    """The classes, and every split with its labels as places among them; a test without labels is left out.

    Integer labels are places among the names that the files or `CLASS_FILES` in the folder tell, if any does; of other
    labels each is a class. Raises PsysError for a label that is none.
    """
    parts = {name: part for name, part in parts.items() if name == "train" or not _is_unlabelled(part)}
    texts = {text for part in parts.values() for text in np.array(part.texts, object)[np.unique(part.codes)]}
    names = next((tuple(part.names) for part in parts.values() if part.names), ()) or _named(path)
    if all(re.fullmatch(r"-?\d{1,18}", text) for text in texts):
        numbers = {text: int(text) for text in texts}
        names = names or tuple(map(str, range(min(max(numbers.values()), MOST_CLASSES) + 1)))
    else:
        names = names or tuple(sorted(texts))
        numbers = {name: number for number, name in enumerate(names)}
    if odd := [text for text in sorted(texts) if not 0 <= numbers.get(text, -1) < len(names)]:
        raise PsysError(
            f"{path} has labels that are none of its {len(names)} classes: {', '.join(map(repr, odd[:_SHOWN]))!s:.200}"
        )
    splits = {}
    for name, part in parts.items():
        label_of = np.array([numbers.get(text, -1) for text in part.texts], np.int64)
        splits[name] = DatasetSplit(part.images, label_of[part.codes])
    return names, splits


def _is_unlabelled(part: PackedSplit) -> bool:
    return all(part.texts[code] == "-1" for code in np.unique(part.codes))  # as competitions hide their test labels


def _named(path: Path) -> tuple[str, ...]:
    folder = path if path.is_dir() else path.parent
    for file in (folder / name for name in CLASS_FILES):
        if not file.is_file():
            continue
        try:
            text = read_bounded(file, CLASSES_BYTES).decode("utf-8")
            names = json.loads(text) if file.suffix == ".json" else text.split("\n")
        except (OSError, ValueError, RecursionError) as error:
            raise PsysError(f"cannot read {file}: {error}") from None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise PsysError(f"{file} must have the names of the classes in order: a list of texts")
        stripped = [name.strip() for name in names]
        while stripped and not stripped[-1]:
            stripped.pop()
        return check_names(stripped, str(file))
    return ()


def check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The names of classes. Raises PsysError if there are none, too many, or two the same."""
    if not 0 < len(names) <= MOST_CLASSES or len(set(names)) < len(names):
        raise PsysError(f"{where} names {len(names)} classes, expected 1 to {MOST_CLASSES:,}, and no two the same")
    return tuple(names)

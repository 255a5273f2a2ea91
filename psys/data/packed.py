"""Data sets with many images per file (Parquet, tar): splits from file names, classes from labels."""

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

# Words for splits in file names, as on the Hugging Face Hub.
SPLIT_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
CLASS_FILES = ("classes.txt", "classes.json")
CLASSES_BYTES, MAX_CLASSES = 2**22, 100_000
_SHOWN = 5


class PackedSplit(NamedTuple):
    """The content of a split's files: image i has the label `texts[codes[i]]`."""

    images: Members
    codes: NDArray[np.int64]  # (N,)
    texts: Sequence[str]
    names: Sequence[str] = ()  # class names, if the files contain them: an integer label is an index into them


def find_packed(path: Path, suffix: str) -> list[Path]:
    """The file `path`, or all files with that suffix in the folder `path` and its direct subfolders, sorted."""
    if path.is_file():
        return [path] if path.suffix == suffix else []
    found = [*path.glob(f"*{suffix}"), *path.glob(f"*/*{suffix}")]
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))


def by_split(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Group files into train, validation and test by a word in the file's or folder's name; train if no file has one.

    Raises PsysError if only some of the files name a split.
    """
    splits: dict[str, list[Path]] = {}
    unnamed: list[Path] = []
    for file in files:
        parts = reversed(file.relative_to(root).parts) if file != root else [file.name]
        words = (set(re.split(r"[^a-z]+", part.lower())) for part in parts)
        split = next((name for found in words for name, known in SPLIT_WORDS.items() if found & known), None)
        (unnamed if split is None else splits.setdefault(split, [])).append(file)
    if splits and unnamed:
        raise PsysError(f"{unnamed[0]} names no split (train, validation, test), but other files in {root} do")
    return splits or {"train": unnamed}


def classified(parts: dict[str, PackedSplit], path: Path) -> tuple[tuple[str, ...], dict[str, DatasetSplit]]:
    """Class names and, for every split, images with labels as indices into them; an unlabelled test split is dropped.

    Integer labels are indices into the class names in the files or in one of `CLASS_FILES`, if there are any. Without
    class names every distinct label is a class. Raises PsysError for a label outside the classes.
    """
    parts = {name: part for name, part in parts.items() if name == "train" or not _is_unlabelled(part)}
    texts = {text for part in parts.values() for text in np.array(part.texts, object)[np.unique(part.codes)]}
    names = next((tuple(part.names) for part in parts.values() if part.names), ()) or _class_names(path)
    if all(re.fullmatch(r"-?\d{1,18}", text) for text in texts):
        numbers = {text: int(text) for text in texts}
        names = names or tuple(map(str, range(min(max(numbers.values()), MAX_CLASSES) + 1)))
    else:
        names = names or tuple(sorted(texts))
        numbers = {name: number for number, name in enumerate(names)}
    if odd := [text for text in sorted(texts) if not 0 <= numbers.get(text, -1) < len(names)]:
        raise PsysError(
            f"{path} has labels outside its {len(names)} classes: {', '.join(map(repr, odd[:_SHOWN]))!s:.200}"
        )
    splits = {}
    for name, part in parts.items():
        label_of = np.array([numbers.get(text, -1) for text in part.texts], np.int64)
        splits[name] = DatasetSplit(part.images, label_of[part.codes])
    return names, splits


def _is_unlabelled(part: PackedSplit) -> bool:
    return all(part.texts[code] == "-1" for code in np.unique(part.codes))  # -1 marks hidden test labels


def _class_names(path: Path) -> tuple[str, ...]:
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
            raise PsysError(f"{file} must be a list of strings, the class names in order")
        stripped = [name.strip() for name in names]
        while stripped and not stripped[-1]:
            stripped.pop()
        return check_names(stripped, str(file))
    return ()


def check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """`names` as a tuple. Raises PsysError if there are none, too many, or duplicates."""
    if not 0 < len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        raise PsysError(f"{where} has {len(names)} class names, expected 1 to {MAX_CLASSES:,} without duplicates")
    return tuple(names)

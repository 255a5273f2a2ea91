"""Bounding boxes of objects: read from a file, and transformed with their images."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from psys.errors import PsysError
from psys.segment.grabcut import Box

LINE_CHARACTERS = 2**14
_SIDES = Box._fields


def read_boxes(path: Path) -> dict[str, Box]:
    """The box of each image file, by path relative to the source's root; several boxes of a file are united.

    `path` is a CSV file with the columns file, left, top, right, bottom, or JSON Lines (.jsonl, .json, .ndjson) of
    objects with these keys. Sides are in pixels of the stored image, before the EXIF orientation is applied; right and
    bottom are exclusive. Raises PsysError naming the invalid line.
    """
    boxes: dict[str, Box] = {}
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            read = _json_rows if path.suffix.lower() in (".jsonl", ".json", ".ndjson") else _csv_rows
            for line, row in read(file):
                name, box = _checked(row, line)
                boxes[name] = _union(boxes[name], box) if name in boxes else box
    except OSError as error:
        raise PsysError(f"cannot read boxes {path}: {error.strerror}") from None
    except _RowError as error:
        raise PsysError(f"{path} line {error.line}: {error}") from None
    if not boxes:
        raise PsysError(f"{path} has no boxes")
    return boxes


def oriented(box: Box, orientation: int, width: int, height: int) -> Box:
    """The box after the EXIF `orientation`, 1 to 8, was applied to its image of width x height pixels."""
    left, top, right, bottom = box
    if orientation >= 5:
        left, top, right, bottom = top, left, bottom, right
        width, height = height, width
    if orientation in (2, 3, 6, 7):
        left, right = width - right, width - left
    if orientation in (3, 4, 7, 8):
        top, bottom = height - bottom, height - top
    return Box(left, top, right, bottom)


def reduced(box: Box, factor: int) -> Box:
    """The box in an image whose sides are divided by `factor`, rounded outwards."""
    return Box(box.left // factor, box.top // factor, -(-box.right // factor), -(-box.bottom // factor))


def visible_part(box: Box, window: Box) -> Box | None:
    """The intersection of a box and a window, in coordinates of the window; None if they do not intersect."""
    left, top = max(box.left, window.left), max(box.top, window.top)
    right, bottom = min(box.right, window.right), min(box.bottom, window.bottom)
    if left >= right or top >= bottom:
        return None
    return Box(left - window.left, top - window.top, right - window.left, bottom - window.top)


class _RowError(ValueError):
    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def _csv_rows(file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(_bounded(file), strict=True)
    try:
        if missing := {"file", *_SIDES} - set(reader.fieldnames or ()):
            expected = ", ".join(("file", *_SIDES))
            raise _RowError(f"expected the columns {expected}; missing: {', '.join(sorted(missing))}", 1)
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise _RowError(str(error), reader.reader.line_num) from None


def _json_rows(file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_bounded(file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _RowError(f"not JSON ({error})", number) from None
        if not isinstance(row, dict):
            raise _RowError(f"expected an object, found {type(row).__name__}", number)
        yield number, row


def _bounded(file: TextIO) -> Iterator[str]:
    number = 0
    while line := file.readline(LINE_CHARACTERS + 1):
        number += 1
        if len(line) > LINE_CHARACTERS:
            raise _RowError(f"more than {LINE_CHARACTERS} characters", number)
        yield line


def _checked(row: dict[str, Any], line: int) -> tuple[str, Box]:
    name = row.get("file")
    if not isinstance(name, str) or not name:
        raise _RowError(f"'file' must be a path relative to the source's root, got {name!r:.100}", line)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise _RowError(f"'file' must be a path inside the source's root, got {name!r:.200}", line)
    left, top, right, bottom = (_pixels(row.get(side), side, line) for side in _SIDES)
    box = Box(math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
    if left >= right or top >= bottom:
        raise _RowError(f"expected left < right and top < bottom, got {left:g}, {top:g}, {right:g}, {bottom:g}", line)
    return str(path), box


def _pixels(value: object, side: str, line: int) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) < 2**31:
        raise _RowError(f"'{side}' must be a number of pixels, got {value!r:.100}", line)
    return number


def _union(one: Box, other: Box) -> Box:
    return Box(
        min(one.left, other.left),
        min(one.top, other.top),
        max(one.right, other.right),
        max(one.bottom, other.bottom),
    )

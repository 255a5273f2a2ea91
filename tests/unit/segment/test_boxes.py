"""Bounding boxes: reading their file, and transforming them with their images."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from psys.errors import PsysError
from psys.segment.boxes import oriented, read_boxes, reduced, visible_part
from psys.segment.grabcut import Box

HEADER = "file,left,top,right,bottom\n"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_box_is_oriented_like_its_image(orientation: int) -> None:
    """The oriented box of a bright patch is the patch's box in the image that OpenCV orients."""
    stored, box = np.zeros((40, 60, 3), np.uint8), Box(8, 4, 30, 12)
    stored[box.top : box.bottom, box.left : box.right] = 255
    tiff = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1" + bytes([0, orientation, 0, 0, 0, 0, 0, 0])
    kinds, blocks = [cv2.IMAGE_METADATA_EXIF], [np.frombuffer(tiff, np.uint8)]
    upright = cv2.imdecode(cv2.imencodeWithMetadata(".png", stored, kinds, blocks)[1], cv2.IMREAD_COLOR)
    assert upright is not None

    rows, columns = np.nonzero(upright[..., 0])

    found = Box(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert oriented(box, orientation, width=60, height=40) == found


def test_box_is_rounded_outwards_and_clipped_to_a_window() -> None:
    assert reduced(Box(5, 8, 13, 16), 4) == Box(1, 2, 4, 4)
    assert visible_part(Box(5, 8, 13, 16), Box(10, 0, 40, 30)) == Box(0, 8, 3, 16)
    assert visible_part(Box(5, 8, 10, 16), Box(10, 0, 40, 30)) is None


def test_boxes_are_read_from_csv_and_json_lines_and_united_per_file(tmp_path: Path) -> None:
    rows = [("cat/a.jpg", 3, 4, 10, 12), ("./cat/b.jpg", 0.5, 0, 9.2, 3), ("cat/a.jpg", 1, 6, 5, 20)]
    table, lines = tmp_path / "boxes.csv", tmp_path / "boxes.jsonl"
    table.write_text(HEADER + "".join(",".join(map(str, row)) + "\n" for row in rows))
    names = HEADER.strip().split(",")
    lines.write_text("\n\n".join(json.dumps({**dict(zip(names, row, strict=True)), "score": 1}) for row in rows))

    assert read_boxes(table) == read_boxes(lines) == {"cat/a.jpg": Box(1, 4, 10, 20), "cat/b.jpg": Box(0, 0, 10, 3)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected the columns file, left, top, right, bottom; missing: bottom, file, left, right, top"),
        ("file,left,top,right\na,1,2,3\n", "line 1: .*missing: bottom"),
        (HEADER, "has no boxes"),
        (HEADER + "a.jpg,1,2,3,4\nb.jpg,1,2,x,4\n", "line 3: 'right' must be a number of pixels, got 'x'"),
        (HEADER + "a.jpg,1,2,3\n", "line 2: 'bottom' must be a number of pixels, got None"),
        (HEADER + "a.jpg,nan,2,3,4\n", "line 2: 'left' must be a number"),
        (HEADER + "a.jpg,1,2,3,1e99\n", "line 2: 'bottom' must be a number"),
        (HEADER + "a.jpg,3,2,3,4\n", "line 2: expected left < right and top < bottom, got 3, 2, 3, 4"),
        (HEADER + "/etc/a.jpg,1,2,3,4\n", "line 2: 'file' must be a path inside the source's root"),
        (HEADER + "../a.jpg,1,2,3,4\n", "line 2: 'file' must be a path inside"),
        (HEADER + ",1,2,3,4\n", "line 2: 'file' must be a path"),
        (HEADER + "a" * 20_000, "line 2: more than 16384 characters"),
        (HEADER + '"a.jpg,1,2,3,4\n', "line 2: "),
    ],
)
def test_error_names_the_invalid_line_of_a_table(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "boxes.csv"
    file.write_text(text)

    with pytest.raises(PsysError, match=message):
        read_boxes(file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[" * 10_000, "line 2: not JSON"),
        ("[1]", "line 2: expected an object, found list"),
        ('{"file": "a", "left": 1, "top": 1, "right": true, "bottom": 3}', "line 2: 'right' must be a number"),
        ('{"file": "a", "left": 1, "top": 1, "right": [2], "bottom": 3}', "line 2: 'right' must be a number"),
        ('{"file": 3, "left": 1, "top": 1, "right": 2, "bottom": 3}', "line 2: 'file' must be a path"),
        ('{"file": "a", "left": 1, "top": 1, "right": 1e999, "bottom": 3}', "line 2: 'right' must be a number"),
    ],
)
def test_error_names_the_invalid_line_of_json(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "boxes.jsonl"
    file.write_text('{"file": "a", "left": 1, "top": 1, "right": 2, "bottom": 3}\n' + line + "\n")

    with pytest.raises(PsysError, match=message):
        read_boxes(file)


def test_missing_file_of_boxes_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"cannot read boxes .*gone\.csv: No such file"):
        read_boxes(tmp_path / "gone.csv")

"""The picture of a confusion matrix."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psys.errors import PsysError
from psys.run.confusion import draw_confusion


@pytest.mark.parametrize("classes", [1, 2, 10, 120])
def test_picture_of_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    generator = np.random.default_rng(0)
    confusion = generator.integers(0, 3, (classes, classes)) + 50 * np.eye(classes, dtype=np.int64)
    confusion[-1] = 0  # a class without images
    path = tmp_path / "confusion.png"
    draw_confusion(confusion, [f"a class of a long name {number}" for number in range(classes)], path, "title")
    with Image.open(path) as image:
        assert min(image.size) >= 400
        assert max(image.size) <= 1600


def test_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"cannot write .*missing"):
        draw_confusion(np.eye(2, dtype=np.int64), ["a", "b"], tmp_path / "missing" / "confusion.png", "title")

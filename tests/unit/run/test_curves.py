import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from numpy.typing import NDArray

from psys.errors import PsysError
from psys.run.curves import EpochPoint, draw

ROOT = Path(__file__).parents[3]
PROGRAM = ROOT / "tests" / "support" / "programs" / "draw_curves.py"
TRAINING, VALIDATION, MARK, SEAM = "#0072B2", "#D55E00", "#333333", "#777777"
RUN = [
    EpochPoint(epoch, 3.0 * epoch, 2 / epoch, 1 - 1 / epoch, 2.5 / epoch, 0.9 - 0.8 / epoch) for epoch in range(1, 8)
]


def pixels_of(colour: str, image: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.asarray(np.abs(image[..., :3] - to_rgb(colour)).max(axis=2) < 0.02)


def test_both_panels_show_training_and_validation(tmp_path: Path) -> None:
    draw(RUN, tmp_path / "curves.png", "sample: resnet8, async")
    image = imread(tmp_path / "curves.png")
    assert image.shape[:2] == (500, 1200)
    for panel in (image[:, :600], image[:, 600:]):
        assert pixels_of(TRAINING, panel).sum() > 300
        assert pixels_of(VALIDATION, panel).sum() > 300


def test_curves_end_at_the_last_values(tmp_path: Path) -> None:
    def last_row(panel: NDArray[np.float32]) -> float:
        """Where the training curve ends, in pixels from the top."""
        rows, columns = np.nonzero(pixels_of(TRAINING, panel))
        return float(rows[columns >= columns.max() - 3].mean())

    ends = []
    for last_loss, last_accuracy in ((RUN[-1].train_loss, RUN[-1].train_accuracy), (2.0, 0.1)):
        last = RUN[-1]._replace(train_loss=last_loss, train_accuracy=last_accuracy)
        draw([*RUN[:-1], last], tmp_path / "curves.png", "run")
        image = imread(tmp_path / "curves.png")
        ends.append((last_row(image[:, :600]), last_row(image[:, 600:])))
    (good_loss, good_accuracy), (bad_loss, bad_accuracy) = ends
    assert good_loss > bad_loss + 200
    assert bad_accuracy > good_accuracy + 200


@pytest.mark.parametrize("epochs", [RUN[:1], [point._replace(epoch=point.epoch / 7) for point in RUN]])
def test_runs_of_one_epoch_and_of_parts_of_an_epoch_are_drawn(tmp_path: Path, epochs: list[EpochPoint]) -> None:
    draw(epochs, tmp_path / "curves.png", "run")
    assert pixels_of(VALIDATION, imread(tmp_path / "curves.png")).any()


def test_without_validation_only_the_training_curve_is_drawn(tmp_path: Path) -> None:
    without_validation = [point._replace(validation_loss=None, validation_accuracy=None) for point in RUN]
    draw(without_validation, tmp_path / "curves.png", "run")
    image = imread(tmp_path / "curves.png")
    assert not pixels_of(VALIDATION, image).any()
    assert pixels_of(TRAINING, image).any()


def test_best_epoch_is_marked_at_its_position(tmp_path: Path) -> None:
    def mark(best: int) -> float:
        """Column of the dotted line in the accuracy panel, as a share of the panel's epochs."""
        points = [point._replace(validation_accuracy=0.5 if point.epoch == best else 0.4) for point in RUN]
        draw(points, tmp_path / "curves.png", "run")
        dots = pixels_of(MARK, imread(tmp_path / "curves.png")[200:440, 660:])
        return float(dots.sum(axis=0).argmax())

    columns = [mark(best) for best in (2, 4, 6)]
    assert columns[1] - columns[0] == pytest.approx(columns[2] - columns[1], abs=3)
    assert columns[1] > columns[0] + 50


def panels(path: Path) -> list[NDArray[np.bool_]]:
    """Pixels of the seams' colour within the frames of the two panels."""
    image = pixels_of(SEAM, imread(path)[90:405])
    return [image[:, 45:598], image[:, 655:1198]]


def lines(panel: NDArray[np.bool_]) -> list[int]:
    """Columns of the vertical lines."""
    full = np.nonzero(panel.mean(axis=0) > 0.6)[0]
    return [int(column) for column in full if column - 1 not in full]


def test_seams_are_numbered_lines_in_both_panels_and_a_list_below(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    draw(RUN, path, "run")
    assert not any(lines(panel) for panel in panels(path))
    height = imread(path).shape[0]
    draw(RUN, path, "run", [(2.0, ["schedule.learning_rate 0.1 → 0.05"]), (4.0, ["epochs 4 → 7"]), (6.0, ["mode"])])
    assert imread(path).shape[0] > height
    ink = imread(path)[78:98, :, :3].min(axis=2) < 0.8
    for panel, left in zip(panels(path), (45, 655), strict=True):
        first, second, third = lines(panel)
        assert second - first == pytest.approx(third - second, abs=2)
        assert all(ink[:, left + column - 10 : left + column - 2].any() for column in (first, second, third))


def test_list_of_many_seams_with_many_changes_is_cut(tmp_path: Path) -> None:
    changes = [f"setting_{number} {'x' * 200} → y" for number in range(20)]
    draw(RUN, tmp_path / "curves.png", "run", [(0.2 * number, changes) for number in range(1, 31)])
    assert imread(tmp_path / "curves.png").shape[0] < 700


def test_seam_after_the_last_point_is_inside_the_picture(tmp_path: Path) -> None:
    draw(RUN, tmp_path / "curves.png", "run", [(7.4, ["training diverged"])])
    for panel in panels(tmp_path / "curves.png"):
        assert len(lines(panel)) == 1


def test_value_that_is_not_known_is_left_out(tmp_path: Path) -> None:
    points = [RUN[0]._replace(train_loss=None), *RUN[1:]]
    draw(points, tmp_path / "curves.png", "run")
    assert pixels_of(TRAINING, imread(tmp_path / "curves.png")[:, :600]).any()


def test_run_without_points_and_missing_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"no curves to draw in .*curves\.png"):
        draw([], tmp_path / "curves.png", "run")
    with pytest.raises(PsysError, match=r"cannot write .*nowhere.*No such file"):
        draw(RUN, tmp_path / "nowhere" / "curves.png", "run")


def test_drawing_does_not_import_pyplot(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), str(tmp_path / "curves.png")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert printed.strip() == "False"

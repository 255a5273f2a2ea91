"""The programs of docs/use-a-model.md, run on an evaluated run."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from psys.run.results import evaluate_run
from tests.support.runs import trained_events, trained_run, write_events, write_tiny_store

_ROOT = Path(__file__).parents[3]
_PROGRAMS = re.findall(
    r"```python\n(.*?)```", (_ROOT / "docs" / "use-a-model.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs are run: with runs/NAME, whose network tells dark from bright images."""
    folder = tmp_path_factory.mktemp("use")
    store = write_tiny_store(folder / "stores" / "tiny")
    run = trained_run(folder / "runs", store)
    write_events(run, trained_events(store))
    evaluate_run(run, Console(file=io.StringIO()))
    run.path.rename(folder / "runs" / "NAME")
    return folder


def test_page_has_a_program_for_onnx_runtime_and_one_for_torch() -> None:
    assert ["psys" in program for program in _PROGRAMS] == [False, True]


@pytest.mark.parametrize("program", _PROGRAMS)
@pytest.mark.parametrize(("name", "pixel"), [("dark", 10), ("bright", 200)])
def test_program_prints_the_class_of_a_photograph(folder: Path, program: str, name: str, pixel: int) -> None:
    Image.fromarray(np.full((120, 90, 3), pixel, np.uint8)).save(folder / "photo.jpg")
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(_ROOT)}, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout == f"{name}\n"

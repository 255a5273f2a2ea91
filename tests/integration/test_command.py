"""The `psys` command, started in another directory than that of the sources."""

from pathlib import Path

import pytest

from tests.support.processes import PS, run


def test_version(tmp_path: Path) -> None:
    done = run("-m", "psys", "--version", cwd=tmp_path)
    assert done.code == 0
    assert done.out.startswith("psys 0.")


def test_without_a_command_it_shows_its_commands(tmp_path: Path) -> None:
    done = run("-m", "psys", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "psys train --config sample" in done.err
    helped = run("-m", "psys", "help", cwd=tmp_path)
    assert (helped.code, helped.out) == (0, done.err)


@pytest.mark.parametrize("command", [["-m", "psys", "train"], ["-m", "psys", "help", "train"], [PS]], ids=" ".join)
def test_help_of_training_shows_the_defaults_of_sample(tmp_path: Path, command: list[str]) -> None:
    done = run(*command, "--help", cwd=tmp_path)
    assert done.code == 0, done
    assert "The defaults shown are those of config sample." in " ".join(done.out.split())
    assert "passes over the training images (default: 40)" in done.out
    assert not list(tmp_path.iterdir())


def test_preparation_without_opencv_is_refused_in_one_line(tmp_path: Path) -> None:
    done = run(
        "-c", "import sys; sys.modules['cv2'] = None; from psys.cli import main; main(['prepare'])", cwd=tmp_path
    )
    assert done.code == 2
    assert done.err.splitlines() == [
        "psys: error: psys prepare needs cv2, which is not installed here: prepare the store elsewhere"
    ]


def test_study_of_a_prepared_store_needs_neither_ray_nor_opencv(small_store_path: Path, tmp_path: Path) -> None:
    without = (
        "import sys; sys.modules['cv2'] = sys.modules['ray'] = None; from psys.cli import main; main(sys.argv[1:])"
    )
    study = ("-c", without, "tradeoff", "--dry-run")
    done = run(*study, f"--base=store={small_store_path}", cwd=tmp_path)
    assert done.code == 0, done
    assert done.out.splitlines()[-1] == "30 of 30 trials are to run"
    missing = run(*study, "--base=store=nowhere", cwd=tmp_path)
    assert missing.code == 2
    assert "no prepared store at nowhere, and to prepare it needs cv2" in missing.err


def test_training_command_imports_neither_ray_nor_opencv(tmp_path: Path) -> None:
    program = "import sys; from psys.cli import main\n" + "\n".join(
        [
            "try: main(['train', '--help'])",
            "except SystemExit: sys.exit(sorted({'ray', 'cv2'} & set(sys.modules)) or 0)",
        ]
    )
    assert run("-c", program, cwd=tmp_path).code == 0

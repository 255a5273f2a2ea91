"""Results of finished tasks on disk."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from psys.data.sample import read_sample
from psys.errors import PsysError
from psys.segment.partial import PartialStore
from psys.segment.task import ImageTask, Prepared, Recipe, prepare_images
from tests.support.images import encoded, pixels_of
from tests.support.processes import ROOT, started

Result = tuple[Recipe, Prepared]
PROGRAM = ROOT / "tests" / "support" / "programs" / "locked_partial_store.py"


@pytest.fixture(scope="module", params=["dense", "encoded"])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A recipe and the result of a task with five images, of which the second cannot be read."""
    recipe = Recipe(32, request.param)
    folder = tmp_path_factory.mktemp("task")
    missing, files = folder / "gone.png", [folder / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        file.write_bytes(encoded(pixels_of(read_sample().test)[number]))
    prepared = prepare_images(ImageTask((*files[:1], missing, *files[1:])), recipe)
    return recipe, prepared


def check_equal(one: Prepared | None, other: Prepared) -> None:
    assert one is not None
    assert one.failures == other.failures
    for name in ("rows", "images", "masks", "quality"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_saved_result_is_loaded_after_reopening(tmp_path: Path, done: Result) -> None:
    recipe, prepared = done
    with PartialStore.opened(tmp_path / "partial") as partial:
        partial.save("abc", prepared)
        check_equal(partial.load("abc", recipe, 5), prepared)
    with PartialStore.opened(tmp_path / "partial") as partial:
        check_equal(partial.load("abc", recipe, 5), prepared)
        assert partial.load("abd", recipe, 5) is None
        partial.remove()

    assert list(tmp_path.iterdir()) == []


def test_damaged_result_counts_as_missing_and_is_replaced(tmp_path: Path, done: Result) -> None:
    recipe, prepared = done
    for damage in (
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    ):
        with PartialStore.opened(tmp_path) as partial:
            partial.save("abc", prepared)
            (file,) = tmp_path.glob("abc.*")
            file.write_bytes(damage(file.read_bytes()))
            assert partial.load("abc", recipe, 5) is None
            partial.save("abc", prepared)
            check_equal(partial.load("abc", recipe, 5), prepared)


def test_result_of_another_shape_counts_as_missing(tmp_path: Path, done: Result) -> None:
    recipe, prepared = done
    other = Recipe(32, "encoded" if recipe.layout == "dense" else "dense")
    with PartialStore.opened(tmp_path) as partial:
        partial.save("abc", prepared)
        assert partial.load("abc", recipe, 6) is None
        assert partial.load("abc", other, 5) is None


def test_forged_result_is_not_unpickled(tmp_path: Path) -> None:
    recipe = Recipe(32)
    forged = [b"\x80\x04cposix\nsystem\n.", safetensors.numpy.save({"rows": np.zeros(3)}), b"PK\3\4"]
    for number, data in enumerate(forged):
        (tmp_path / f"k{number}.{sha256(data).hexdigest()[:32]}.safetensors").write_bytes(data)
    with PartialStore.opened(tmp_path) as partial:
        assert [partial.load(f"k{number}", recipe, 3) for number in range(3)] == [None, None, None]


def test_unfinished_file_of_a_killed_process_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "0123.unfinished").write_bytes(b"half")

    with PartialStore.opened(tmp_path):
        assert [entry.name for entry in tmp_path.iterdir()] == ["lock"]


def test_folder_is_locked_for_one_process(tmp_path: Path) -> None:
    with started(str(PROGRAM), str(tmp_path), cwd=tmp_path) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(PsysError, match="another process is preparing into"), PartialStore.opened(tmp_path):
            pass
    with PartialStore.opened(tmp_path):
        pass

"""Finished shards on disk."""

import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from psys.data.sample import read_sample
from psys.errors import PsysError
from psys.segment.partial import PartialStore
from psys.segment.task import ImageTask, Recipe, prepare_images


@pytest.fixture(scope="module", params=["dense", "encoded"])
def done(request, tmp_path_factory):
    """A recipe, and a shard of five images of which the second cannot be read."""
    recipe = Recipe(32, request.param)
    gone = tmp_path_factory.mktemp("shard") / "gone.png"
    prepared = prepare_images(
        ImageTask((*read_sample().test.images[:1], gone, *read_sample().test.images[1:4])), recipe
    )
    return recipe, prepared


def same(one, other):
    assert one.failures == other.failures
    for name in ("rows", "images", "masks", "quality"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_saved_result_is_loaded_after_reopening(tmp_path: Path, done: Result) -> None:
    recipe, prepared = done
    with PartialStore.opened(tmp_path / "partial") as partial:
        partial.save("abc", prepared)
        same(partial.load("abc", recipe, 5), prepared)
    with PartialStore.opened(tmp_path / "partial") as partial:
        same(partial.load("abc", recipe, 5), prepared)
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
            same(partial.load("abc", recipe, 5), prepared)


def test_result_of_another_shape_counts_as_missing(tmp_path: Path, done: Result) -> None:
    recipe, prepared = done
    other = Recipe(32, "encoded" if recipe.layout == "dense" else "dense")
    with PartialStore.opened(tmp_path) as partial:
        partial.save("abc", prepared)
        assert partial.load("abc", recipe, 6) is None
        assert partial.load("abc", other, 5) is None


def test_forged_result_is_not_unpickled(tmp_path: Path) -> None:
    from hashlib import sha256

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
    code = "import sys; from pathlib import Path; from psys.segment.partial import PartialStore\n"
    code += "with PartialStore.opened(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert other.stdout is not None
    other.stdout.readline()

    with pytest.raises(PsysError, match="another process is preparing into"), PartialStore.opened(tmp_path):
        pass
    other.kill()
    other.communicate()
    with PartialStore.opened(tmp_path):
        pass

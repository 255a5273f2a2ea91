"""`psys prepare` with a real local Ray."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from psys.data.sample import read_sample
from psys.data.source import open_source
from psys.data.source_name import source_location
from psys.data.store import PreparedStore
from psys.errors import PsysError
from psys.segment.grabcut import Box, SegmentConfig
from psys.segment.plan import Plan
from psys.segment.prepare import PrepareConfig, prepare
from psys.segment.task import Recipe
from tests.support.images import pixels_of
from tests.support.processes import wait_until

TASKS = 9  # of 8 photographs each; the last task of each split has fewer


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with 60 real images, enlarged to various sizes, and one broken file."""
    folder = tmp_path_factory.mktemp("source") / "photos"
    sample = read_sample()
    for label in (3, 8, 9):
        (folder / sample.classes[label]).mkdir(parents=True)
        for number, row in enumerate(np.flatnonzero(sample.test.labels == label)[:20]):
            size = (32 + 3 * number, 40 + number)
            picture = cv2.resize(pixels_of(sample.test)[row], size, interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(folder / sample.classes[label] / f"{number:02d}.png"), picture[..., ::-1])
    (folder / "ship" / "broken.png").write_bytes(b"\x89PNG and nothing more")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedStore:
    """The store of the photographs, prepared by one actor without interruption."""
    return PreparedStore.open(
        prepare(PrepareConfig(source=str(photos), stores=tmp_path_factory.mktemp("one"), actors=1))
    )


def ray_processes() -> set[int]:
    """Ids of Ray daemons that are descendants of this process or of no other process."""
    own = _descendants(os.getpid())
    return {
        process.pid
        for process in psutil.process_iter(["name", "ppid"])
        if process.info["name"] in ("raylet", "gcs_server") and (process.pid in own or process.info["ppid"] == 1)
    }


def _descendants(pid: int) -> set[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, _, fields = stat.read_text().partition(" ")
        except OSError:
            continue
        parents[int(number)] = int(fields.rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _listening_addresses(pids: set[int]) -> list[IPv4Address | IPv6Address]:
    """Addresses of the TCP sockets on which the processes listen."""
    sockets = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:  # 0A: LISTEN
                words = bytes.fromhex(fields[1].partition(":")[0])
                address = ip_address(b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4)))
                found.append(getattr(address, "ipv4_mapped", None) or address)
    return found


def test_one_and_two_actors_prepare_the_same_store(
    photos: Path, uninterrupted: PreparedStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, one = ray_processes(), uninterrupted
    config = PrepareConfig(source=str(photos), stores=tmp_path, actors=2, gallery=True)

    capfd.readouterr()
    two = PreparedStore.open(prepare(config))
    printed = capfd.readouterr()

    one.verify()
    assert one.content_hash == two.content_hash
    assert one.manifest == two.manifest
    assert ray_processes() <= before
    assert one.classes == ("cat", "ship", "truck")
    skipped = one.manifest["splits"]["train"]["skipped"] + one.manifest["splits"]["test"]["skipped"]
    assert [(Path(entry["file"]).name, entry["reason"]) for entry in skipped] == [
        ("broken.png", "the file ends too early")
    ]
    (line,) = (one.path / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line) == {"split": "train", **skipped[0]}
    assert "broken.png: the file ends too early" in printed.out
    assert "1 skipped" in printed.out
    assert printed.err == ""
    assert one.manifest["source"]["origin"] == "folder photos"
    assert one.manifest["prepared_from"] == source_location(str(photos))
    assert set(one.manifest["libraries"]) == {"numpy", "opencv-python-headless", "ray"}
    assert one.manifest["splits"]["test"]["per_class"] == [4, 4, 4]
    assert sum(one.manifest["splits"][split]["count"] for split in ("train", "test")) == 60
    assert one.manifest["splits"]["train"]["degenerate_share"] <= 0.05
    sheet = cv2.imread(str(two.path / "gallery.png"))
    assert sheet is not None
    assert sheet.shape[1] > 1000

    capfd.readouterr()
    prepare(config.model_copy(update={"gallery": False}))
    assert "already prepared" in capfd.readouterr().out
    with pytest.raises(PsysError, match=r"another settings \(image_size differ"):
        prepare(config.model_copy(update={"image_size": 24}))


def test_unreadable_image_ends_the_preparation_with_on_error_fail(photos: Path, tmp_path: Path) -> None:
    before = ray_processes()

    with pytest.raises(PsysError, match=r"cannot prepare image ship/broken\.png: the file ends too early"):
        prepare(PrepareConfig(source=str(photos), stores=tmp_path / "stores", actors=1, on_error="fail"))

    assert [entry.name for entry in (tmp_path / "stores").iterdir()] == [".photos.shards"]
    assert ray_processes() <= before


def test_class_without_readable_images_is_rejected(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (source / split / name).mkdir(parents=True)
            cv2.imwrite(str(source / split / name / "a.png"), pixels_of(read_sample().test)[0])
    (source / "test" / "dog" / "a.png").write_text("broken")

    with pytest.raises(PsysError, match="class 'dog' has no readable image for test"):
        prepare(PrepareConfig(source=str(source), stores=tmp_path / "stores", actors=1))


def test_address_without_a_cluster_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"nothing answers at ray_address 127\.0\.0\.1:9"):
        prepare(PrepareConfig(stores=tmp_path, ray_address="127.0.0.1:9"))


@contextmanager
def preparing(stores: Path, *flags: object, home: str | None = None) -> Iterator["subprocess.Popen[str]"]:
    """`psys prepare` in another process, which is killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "psys", "prepare", "--stores", str(stores), *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)} | ({"HOME": home} if home else {}),
        # A process started in the background by a shell script ignores SIGINT and its children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finished_tasks(stores: Path, name: str) -> int:
    return len([*stores.glob(f".{name}.shards/*.safetensors")])


def test_killed_preparation_is_cleaned_up_and_resumed(
    photos: Path, uninterrupted: PreparedStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stores = tmp_path / "killed"
    flags = ["--source", photos, "--actors", 2]
    with preparing(stores, *flags) as process:
        wait_until(lambda: finished_tasks(stores, "photos") >= 2 or process.poll() is not None, "finished tasks")
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        left = psutil.wait_procs(family, timeout=20)[1]
        kept = finished_tasks(stores, "photos")

    assert left == []
    assert 2 <= kept < TASKS
    (stores / ".photos.12345678.partial").mkdir()  # as after a kill while the store was written

    config = PrepareConfig(source=str(photos), stores=stores, actors=3)
    resumed = PreparedStore.open(prepare(config))
    printed = capfd.readouterr().out

    done, reused = re.findall(r"(\d+) tasks \(\d+ images\)", printed)
    assert (int(done), int(reused)) == (TASKS - kept, kept)
    resumed.verify()
    assert resumed.manifest == uninterrupted.manifest
    assert resumed.content_hash == uninterrupted.content_hash
    assert [entry.name for entry in stores.iterdir()] == ["photos"]


def test_task_keys_change_with_settings_and_files(photos: Path, tmp_path: Path) -> None:
    dataset = open_source(str(photos), tmp_path, 0.2, 0)
    recipe = Recipe(32)

    def keys(recipe: Recipe = recipe, boxes: dict[str, Box] | None = None) -> list[str]:
        return [task.key for task in Plan(dataset, boxes or {}, recipe, "algorithm")]

    before = keys()
    assert len(set(before)) == len(before) == TASKS
    assert keys() == before
    for other in (Recipe(24), Recipe(32, "encoded"), Recipe(32, segment=SegmentConfig(iterations=2))):
        assert not set(keys(other)) & set(before)
    assert not {task.key for task in Plan(dataset, {}, recipe, "another")} & set(before)
    boxed = Plan(dataset, {"cat/01.png": Box(1, 1, 9, 9), "cat/other.png": Box(1, 1, 9, 9)}, recipe, "algorithm")
    (task,) = (task for task in boxed if task.key not in before)
    assert boxed.boxed == 1
    assert [box for box in boxed.load(task).boxes if box] == [Box(1, 1, 9, 9)]
    os.utime(photos / "cat" / "01.png", ns=(1, 1))
    assert len(set(keys()) - set(before)) == 1
    with pytest.raises(PsysError, match=r"none of the files with boxes \('cat/nowhere.png', ...\) is an image under"):
        keys(boxes={"cat/nowhere.png": Box(1, 1, 9, 9)})


def test_ray_listens_on_loopback_and_interrupt_leaves_no_partial_store(tmp_path: Path) -> None:
    before = ray_processes()
    with preparing(tmp_path, "--actors", 1, home="/proc/none") as process:  # nothing can be written there
        wait_until(lambda: finished_tasks(tmp_path, "sample") > 0, "a finished task")
        listening = _listening_addresses(_descendants(process.pid))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)

    assert listening, "Ray's own daemons listen for each other"
    assert all(address.is_loopback for address in listening)

    assert process.returncode == 130
    assert [entry.name for entry in tmp_path.iterdir()] == [".sample.shards"]
    assert ray_processes() <= before

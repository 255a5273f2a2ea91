"""`psys prepare` as a user runs it, through a real local Ray."""

import os
import signal
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import cv2
import numpy as np
import pytest

from psys.data.sample import read_sample
from psys.data.store import PreparedStore
from psys.errors import PsysError
from psys.segment.prepare import PrepareConfig, prepare


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Class folders of 60 real images, enlarged to various sizes, and one broken file."""
    folder = tmp_path_factory.mktemp("source") / "photos"
    sample = read_sample()
    for label in (3, 8, 9):
        (folder / sample.classes[label]).mkdir(parents=True)
        for number, row in enumerate(np.flatnonzero(sample.test.labels == label)[:20]):
            size = (32 + 3 * number, 40 + number)
            picture = cv2.resize(sample.test.images[row], size, interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(folder / sample.classes[label] / f"{number:02d}.png"), picture[..., ::-1])
    (folder / "ship" / "broken.png").write_bytes(b"\x89PNG and nothing more")
    return folder


def ray_processes() -> set[int]:
    """Process ids of Ray's daemons on this machine."""
    return {
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _name(entry) in ("raylet", "gcs_server")
    }


def _name(entry: Path) -> str:
    try:
        return (entry / "comm").read_text().strip()
    except OSError:
        return ""


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
    """Addresses of the TCP sockets on which these processes listen."""
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


def test_one_and_two_actors_make_the_same_store_and_leave_no_ray_behind(photos, tmp_path, capfd):
    before = ray_processes()
    config = PrepareConfig(source=str(photos), stores=tmp_path, actors=1, name="one", gallery=True)

    one = PreparedStore.open(prepare(config))
    said = capfd.readouterr()
    two = PreparedStore.open(prepare(config.model_copy(update={"actors": 2, "name": "two", "gallery": False})))

    one.verify()
    assert one.content_hash == two.content_hash
    assert one.manifest == two.manifest
    assert ray_processes() <= before
    assert one.classes == ("cat", "ship", "truck")
    skipped = one.manifest["splits"]["train"]["skipped"] + one.manifest["splits"]["test"]["skipped"]
    assert [(Path(entry["file"]).name, entry["reason"]) for entry in skipped] == [
        ("broken.png", "the file ends too early")
    ]
    assert "broken.png: the file ends too early" in said.out
    assert "1 skipped" in said.out
    assert said.err == ""
    assert one.manifest["source"]["origin"] == "folder photos"
    assert set(one.manifest["libraries"]) == {"numpy", "opencv-python-headless", "ray"}
    assert one.manifest["splits"]["test"]["per_class"] == [4, 4, 4]
    assert sum(one.manifest["splits"][split]["count"] for split in ("train", "test")) == 60
    assert one.manifest["splits"]["train"]["degenerate_share"] <= 0.05
    assert cv2.imread(str(one.path / "gallery.png")).shape[1] > 1000

    capfd.readouterr()
    prepare(config.model_copy(update={"gallery": False}))
    assert "prepared already" in capfd.readouterr().out
    with pytest.raises(PsysError, match=r"another settings \(image_size differ"):
        prepare(config.model_copy(update={"image_size": 24}))


def test_an_unreadable_image_is_fatal_by_setting_and_leaves_nothing(photos, tmp_path):
    before = ray_processes()

    with pytest.raises(PsysError, match=r"cannot read image .*broken\.png: the file ends too early"):
        prepare(PrepareConfig(source=str(photos), stores=tmp_path / "stores", actors=1, on_error="fail"))

    assert list((tmp_path / "stores").iterdir()) == []
    assert ray_processes() <= before


def test_a_class_with_no_readable_image_is_named(tmp_path):
    source = tmp_path / "source"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (source / split / name).mkdir(parents=True)
            cv2.imwrite(str(source / split / name / "a.png"), read_sample().test.images[0])
    (source / "test" / "dog" / "a.png").write_text("broken")

    with pytest.raises(PsysError, match="class 'dog' has no readable image left for test"):
        prepare(PrepareConfig(source=str(source), stores=tmp_path / "stores", actors=1))


def test_an_address_without_a_cluster_is_named(tmp_path):
    with pytest.raises(PsysError, match=r"nothing answers at ray_address 127\.0\.0\.1:9"):
        prepare(PrepareConfig(stores=tmp_path, ray_address="127.0.0.1:9"))


def test_ray_listens_on_loopback_only_and_ctrl_c_ends_it_without_a_half_store(tmp_path):
    before = ray_processes()
    command = "from psys.segment.prepare import *; from pathlib import Path; import sys; "
    command += "prepare(PrepareConfig(stores=Path(sys.argv[1]), actors=1))"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", command, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    next(line for line in process.stdout if "images/s" in line)
    listening = _listening_addresses(_descendants(process.pid))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)

    assert listening, "Ray's own daemons listen for each other"
    assert all(address.is_loopback for address in listening)

    assert process.returncode != 0
    assert list(tmp_path.iterdir()) == []
    assert ray_processes() <= before

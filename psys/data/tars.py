"""WebDataset tars: a sample is consecutive members of one key, its image `KEY.jpg` and its label `KEY.cls`."""

import json
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from psys.data.archive import DAMAGED, is_archive, tar_members
from psys.data.image import EXTENSIONS
from psys.data.packed import PackedSplit
from psys.data.reference import FILE_BYTES, Members, Span
from psys.errors import PsysError

FIRST_MEMBERS = 100  # a few other files may precede the samples
LABEL_BYTES = 2**20  # of a .json member; a .cls member has a few bytes
JSON_LABELS = ("label", "cls")  # keys of the label in a .json member; the first that exists is used
_Sample = dict[str, Span]  # a sample's members by extension


def holds_samples(path: Path) -> bool:
    """True for an uncompressed tar whose first members include an image or label of a WebDataset sample."""
    try:
        with path.open("rb") as file:
            names = [name for name, _, _ in islice(tar_members(file, FILE_BYTES), FIRST_MEMBERS)]
    except DAMAGED:
        return False
    return any(_key(name)[1] in (*EXTENSIONS, "cls", "json") for name in names)


def read_tars(files: Sequence[Path]) -> PackedSplit:
    """Labels and references of every image in the tars; images are not read. A label is in a .cls or .json member.

    Raises PsysError naming a damaged tar and the sample.
    """
    positions, codes, texts = array("q"), array("q"), dict[str, int]()
    for number, path in enumerate(files):
        if not is_archive(path):
            raise PsysError(f"{path} is not a tar")
        before = len(codes)
        try:
            with path.open("rb") as file:
                for key, sample in _samples(file):
                    images = [sample[extension] for extension in EXTENSIONS if extension in sample]
                    if not images:
                        continue
                    if len(images) > 1:
                        raise ValueError(f"sample {key} has {len(images)} images, expected one")
                    positions.extend((number, *images[0]))
                    codes.append(texts.setdefault(_label(file, key, sample), len(texts)))
        except DAMAGED as error:
            raise PsysError(f"{path} is not a complete WebDataset tar: {error}") from None
        if len(codes) == before:
            raise PsysError(f"{path} has no sample with an image ({' '.join(EXTENSIONS)})")
    table = np.frombuffer(positions, np.int64).reshape(-1, 3)
    return PackedSplit(Members(files, Span, table), np.frombuffer(codes, np.int64), list(texts))


def _samples(file: BinaryIO) -> Iterator[tuple[str, _Sample]]:
    key, sample = "", _Sample()
    for name, offset, size in tar_members(file, FILE_BYTES):
        member_key, extension = _key(name)
        if member_key != key:
            if sample:
                yield key, sample
            key, sample = member_key, {}
        if extension in sample:
            raise ValueError(f"sample {key} has two members {extension}")
        sample[extension] = Span(offset, size)
    if sample:
        yield key, sample


def _key(name: str) -> tuple[str, str]:
    """Split a member's name into the key and the extension, which is all after the first dot of the base name."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _label(file: BinaryIO, key: str, sample: _Sample) -> str:
    extension = next((extension for extension in ("cls", "json") if extension in sample), None)
    if extension is None:
        raise ValueError(f"sample {key} has no label: expected {key}.cls or {key}.json")
    offset, size = sample[extension]
    if size > LABEL_BYTES:
        raise ValueError(f"sample {key} has a label of {size:,} bytes")
    file.seek(offset)
    data = file.read(size)
    try:
        label = json.loads(data) if extension == "json" else data.decode("utf-8").strip()
    except (ValueError, RecursionError):
        raise ValueError(f"sample {key} has a .{extension} that cannot be read") from None
    if extension == "json":
        label = next((label[name] for name in JSON_LABELS if name in label), None) if isinstance(label, dict) else None
    if not isinstance(label, int | str) or isinstance(label, bool) or label == "":
        raise ValueError(f"sample {key} has a .{extension} without a label")
    return str(label)

"""Damaged Parquet files and WebDataset tars: each is read or rejected with one clear error."""

import contextlib
from pathlib import Path
from random import Random

import numpy as np
import pytest

from psys.data.source import open_source
from tests.support.images import encoded, read_image
from tests.support.mutations import count_rejected, damaged
from tests.support.packed import sample_images, samples, write_parquet, write_tar

pytestmark = pytest.mark.timeout(60)


def read_all(path: Path) -> None:
    """Read every image of a source; a damaged image may raise ValueError."""
    dataset = open_source(str(path), path, 0.2, 0)
    for split in dataset.splits.values():
        assert 0 <= split.labels.min() <= split.labels.max() < len(dataset.classes)
        assert not isinstance(split.images, np.ndarray)
        for reference in split.images:
            with contextlib.suppress(ValueError):
                assert read_image(reference).shape[2] == 3


def test_damaged_parquet_files_are_read_or_rejected(tmp_path: Path) -> None:
    images, labels = sample_images(5)
    file = tmp_path / "a.parquet"
    for rows in (7, 100):
        whole = write_parquet(file, [encoded(image, ".jpg") for image in images], labels, rows=rows).read_bytes()
        footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")

        def change_any_byte(random: Random, whole: bytes = whole) -> None:
            file.write_bytes(damaged(whole, random))
            read_all(file)

        def change_footer(random: Random, whole: bytes = whole, footer: int = footer) -> None:
            changed = damaged(whole[footer:-8], random)
            file.write_bytes(whole[:footer] + changed + len(changed).to_bytes(4, "little") + b"PAR1")
            read_all(file)

        read_all(file)
        assert count_rejected(50, 11, change_any_byte, tmp_path) > 10
        assert count_rejected(100, 12, change_footer, tmp_path) > 60


def test_damaged_tars_are_read_or_rejected(tmp_path: Path) -> None:
    images, labels = sample_images(5)
    file = tmp_path / "train.tar"
    whole = write_tar(file, samples(images, labels, ".jpg"), mtime=0.5).read_bytes()

    def attempt(random: Random) -> None:
        at = 512 * random.randrange(len(whole) // 512 - 20)
        block = damaged(whole[at : at + 512], random)[:512].ljust(512, b"\0")
        if random.random() < 0.8:  # with a valid checksum
            block = block[:148] + b"%06o\0 " % sum(block[:148] + b" " * 8 + block[156:]) + block[156:]
        file.write_bytes(damaged(whole, random) if random.random() < 0.3 else whole[:at] + block + whole[at + 512 :])
        read_all(tmp_path)

    read_all(tmp_path)
    assert count_rejected(150, 13, attempt, tmp_path) > 30  # other cases damage an image or unused bytes

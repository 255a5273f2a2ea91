"""Small Parquet files (Hugging Face) and tars (WebDataset) of real images."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from psys.data.sample import read_sample
from tests.support.images import Image, encoded, pixels_of

SAMPLE = read_sample()
CLASSES = SAMPLE.classes


def sample_images(per_class: int, first: int = 0, classes: int = 10) -> tuple[Image, NDArray[np.int64]]:
    """Images and labels of the sample, alternating between the classes."""
    train = SAMPLE.train
    rows = [np.flatnonzero(train.labels == label)[first : first + per_class] for label in range(classes)]
    order = np.stack(rows, axis=1).ravel()
    return pixels_of(train)[order], train.labels[order]


def write_parquet(
    path: Path,
    images: Iterable[bytes | None],
    labels: Sequence[Any] | NDArray[Any],
    names: Any = CLASSES,
    columns: tuple[str, str] = ("image", "label"),
    rows: int = 100,
    plain: bool = False,
) -> Path:
    """Write a Parquet file with `rows` rows per row group; plain: images are bytes instead of structs."""
    values: list[Any] = list(images)
    if not plain:
        values = [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(values)]
    kind = pa.binary() if plain else pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({columns[0]: pa.array(values, kind), columns[1]: pa.array(labels)})
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=rows)
    return path


def tar_bytes(members: Iterable[tuple[str, bytes]], mtime: float = 0, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of members in order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), mtime
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mtime: float = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members, mtime))
    return path


def samples(images: Iterable[Image], labels: Iterable[object], suffix: str = ".png", folder: str = "") -> Any:
    """Members of WebDataset samples: KEY.png and KEY.cls."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield f"{folder}{number:06d}{suffix}", encoded(image, suffix)
        yield f"{folder}{number:06d}.cls", str(label).encode()

"""Small data sets packed into files, of real images: Parquet as Hugging Face writes it, tars as WebDataset does."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from psys.data.sample import read_sample

SAMPLE = read_sample()
CLASSES = SAMPLE.classes


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    done, data = cv2.imencode(suffix, image[..., ::-1])
    assert done
    return data.tobytes()


def some(per_class: int, first: int = 0, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Real images and labels, class by class in turn."""
    train = SAMPLE.train
    rows = [np.flatnonzero(train.labels == label)[first : first + per_class] for label in range(classes)]
    order = np.stack(rows, axis=1).ravel()
    return np.asarray(train.images)[order], train.labels[order]


def write_parquet(
    path: Path,
    images: Iterable[bytes | None],
    labels: Sequence[Any],
    names: Any = CLASSES,
    columns: tuple[str, str] = ("image", "label"),
    rows: int = 100,
    plain: bool = False,
) -> Path:
    """A Parquet file with `rows` to a row group; `plain`: images as bytes and not as structures."""
    cells: list[Any] = list(images)
    if not plain:
        cells = [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(cells)]
    kind = pa.binary() if plain else pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({columns[0]: pa.array(cells, kind), columns[1]: pa.array(labels)})
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=rows)
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mtime: float = 0) -> Path:
    """A tar of members in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), mtime
            tar.addfile(member, io.BytesIO(data))
    return path


def samples(images: Iterable[np.ndarray], labels: Iterable[object], suffix: str = ".png", folder: str = "") -> Any:
    """Members of WebDataset samples: KEY.png and KEY.cls."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield f"{folder}{number:06d}{suffix}", encoded(image, suffix)
        yield f"{folder}{number:06d}.cls", str(label).encode()

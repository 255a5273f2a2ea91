"""A folder of test photographs made from the sample: all formats and orientations, broken files and a huge image.

`python -m tests.support.photographs make FOLDER --count 2000` writes the folder; `... check STORE --source FOLDER`
compares the store that `psys prepare` made from the folder with the original pixels.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from psys.data.dataset import DatasetSplit
from psys.data.reference import Files
from psys.data.sample import read_sample
from psys.data.source import open_source
from psys.data.store import PreparedStore
from tests.support.images import pixels_of

Pixels = NDArray[np.uint8]
KINDS = {  # file extensions; kinds that support EXIF have all eight orientations
    "jpeg": ".jpg",
    "jpeg-grey": ".jpg",
    "jpeg-cmyk": ".jpg",
    "jpeg-progressive": ".JPEG",
    "png": ".png",
    "png-grey": ".png",
    "png-16": ".png",
    "png-rgba": ".png",
    "png-palette": ".png",
    "webp": ".webp",
    "webp-rgba": ".webp",
    "tiff": ".tif",
    "bmp": ".bmp",
}
BROKEN = {"cut.jpg": "the file ends too early", "text.png": "not an image", "empty.webp": "the file is empty"}
HUGE = "huge.jpg"
MAX_DIFFERENCE = 8.0  # largest mean difference, in levels of 255, due to JPEG and palettes


def original(row: int) -> tuple[Pixels, str, int, int]:
    """Upright pixels (H, W, 3), kind, EXIF orientation and label of photograph `row`."""
    sample = _sample()
    kind = list(KINDS)[row % len(KINDS)]
    orientation = 1 if kind == "bmp" else 1 + row // len(KINDS) % 8
    generator = np.random.default_rng(row)
    width, height = (int(side) for side in generator.integers(60, 400, 2))
    pixels = cv2.resize(pixels_of(sample)[row % 2000], (width, height), interpolation=cv2.INTER_CUBIC)
    if "grey" in kind:
        pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if "rgba" in kind:
        pixels[: height // 3] = 255  # white pixels are made transparent
    return np.asarray(pixels, np.uint8), kind, orientation, int(sample.labels[row % 2000])


def make(folder: Path, count: int, huge_side: int) -> None:
    """Write `count` photographs, the last four of which are three broken files and one huge image."""
    for row in range(count - 4):
        pixels, kind, orientation, label = original(row)
        path = folder / f"class{label}" / f"{row:05d}-{kind}-{orientation}{KINDS[kind]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encoded(_stored(pixels, orientation), kind, orientation))
    last = folder / "class0"
    (last / "cut.jpg").write_bytes(_encoded(original(0)[0], "jpeg", 1)[:-200])
    (last / "text.png").write_text("not an image at all")
    (last / "empty.webp").touch()
    cv2.imwrite(str(last / HUGE), cv2.resize(huge_original(), (huge_side, huge_side)))


def huge_original() -> Pixels:
    """The huge photograph before it is enlarged, (32, 32) grey."""
    return np.asarray(cv2.cvtColor(pixels_of(_sample())[7], cv2.COLOR_RGB2GRAY), np.uint8)


def expected(pixels: Pixels, size: int) -> Pixels:
    """The centred square of an image, resized to `size` pixels a side."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(square, (size, size), interpolation=interpolation), np.uint8)


def closest_orientation(image: Pixels, reference: Pixels) -> tuple[int, float]:
    """The orientation in which an image is closest to a reference, and the mean difference in orientation 1."""
    differences = [float(np.abs(_stored(image, o).astype(int) - reference).mean()) for o in range(1, 9)]
    return 1 + int(np.argmin(differences)), differences[0]


@cache
def _sample() -> DatasetSplit:
    return read_sample().train


def _stored(upright: Pixels, orientation: int) -> Pixels:
    """The pixels that a camera with this EXIF orientation stores."""
    match orientation:
        case 2:
            return np.fliplr(upright)
        case 3:
            return np.rot90(upright, 2)
        case 4:
            return np.flipud(upright)
        case 5:
            return np.fliplr(np.rot90(upright, -1))
        case 6:
            return np.rot90(upright, 1)
        case 7:
            return np.flipud(np.rot90(upright, -1))
        case 8:
            return np.rot90(upright, -1)
    return upright


def _encoded(pixels: Pixels, kind: str, orientation: int) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    form = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "tiff": "TIFF", "bmp": "BMP"}[kind.split("-")[0]]
    options: dict[str, object] = {}
    if form != "BMP":
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    match kind.partition("-")[2]:
        case "grey":
            image = image.convert("L")
        case "cmyk":
            image = image.convert("CMYK")
        case "progressive":
            options["progressive"] = True
        case "palette":
            image = image.quantize(256)
        case "rgba":
            opaque = np.asarray((pixels < 255).any(axis=2))
            colours = np.where(opaque[..., None], pixels, np.uint8(0))  # transparent pixels are black
            image = Image.fromarray(np.dstack([colours, 255 * opaque.astype(np.uint8)]))
            options["lossless"] = True
        case "16":
            kinds, blocks = [cv2.IMAGE_METADATA_EXIF], [np.frombuffer(exif.tobytes()[6:], np.uint8)]
            return cv2.imencodeWithMetadata(".png", pixels[..., ::-1].astype(np.uint16) * 257, kinds, blocks)[
                1
            ].tobytes()
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": 95} if form in ("JPEG", "WEBP") else {}), **options)
    return buffer.getvalue()


def check(store: PreparedStore, source: Path) -> Iterator[str]:
    """Compare a store with the original pixels of its source folder; yields one line for each difference."""
    dataset = open_source(str(source), source, test_share=0.2, seed=0)
    for split in ("train", "test"):
        skipped = {Path(entry["file"]).name for entry in store.manifest["splits"][split]["skipped"]}
        images = dataset.splits[split].images
        assert isinstance(images, Files)
        names = [Path(str(path)).name for path in images]
        kept = [name for name in names if name not in skipped]
        for name, image in zip(kept, store.split(split).images[:], strict=True):
            reference = np.dstack([huge_original()] * 3) if name == HUGE else original(int(name[:5]))[0]
            found, difference = closest_orientation(image, expected(reference, store.image_size[0]))
            if found != 1 or difference > MAX_DIFFERENCE:
                yield f"{split} {name}: orientation {found}, {difference:.1f} levels of difference"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["make", "check"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", type=Path, help="the folder of photographs, for check")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--huge-side", type=int, default=20_000)
    arguments = parser.parse_args()
    if arguments.action == "make":
        make(arguments.folder, arguments.count, arguments.huge_side)
        return
    differences = [*check(PreparedStore.open(arguments.folder), arguments.source)]
    print("\n".join(differences) or "no differences")
    sys.exit(bool(differences))


if __name__ == "__main__":
    main()

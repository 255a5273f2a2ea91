"""A folder of photographs as people have them, made of the embedded real images: all formats, turned, broken, huge.

`python -m tests.support.photographs make FOLDER --count 2000` writes one; `... check STORE --source FOLDER` compares
what `psys prepare` made of it with the originals.
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
from psys.data.sample import read_sample
from psys.data.source import open_source
from psys.data.store import PreparedStore

Pixels = NDArray[np.uint8]
KINDS = {  # file endings; what may be turned by EXIF comes in eight orientations
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
UNLIKE = 8.0  # levels of 255 in the mean, which JPEG and palettes may cost


def original(row: int) -> tuple[Pixels, str, int, int]:
    """Photograph `row`: its pixels (H, W, 3) upright, its kind, its EXIF orientation, its label."""
    sample = _sample()
    kind = list(KINDS)[row % len(KINDS)]
    orientation = 1 if kind == "bmp" else 1 + row // len(KINDS) % 8
    generator = np.random.default_rng(row)
    width, height = (int(side) for side in generator.integers(60, 400, 2))
    pixels = cv2.resize(sample.images[row % 2000], (width, height), interpolation=cv2.INTER_CUBIC)
    if "grey" in kind:
        pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if "rgba" in kind:
        pixels[: height // 3] = 255  # transparent there
    return np.asarray(pixels, np.uint8), kind, orientation, int(sample.labels[row % 2000])


def make(folder: Path, count: int, huge_side: int) -> None:
    """`count` photographs, the last four of which are three broken ones and a huge one."""
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
    """What the huge photograph shows, (32, 32) grey."""
    return np.asarray(cv2.cvtColor(_sample().images[7], cv2.COLOR_RGB2GRAY), np.uint8)


def expected(pixels: Pixels, size: int) -> Pixels:
    """The middle square of an image, brought to `size`."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    how = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(square, (size, size), interpolation=how), np.uint8)


def way_up(image: Pixels, wanted: Pixels) -> tuple[int, float]:
    """The orientation in which an image is most like the one that is wanted (1: the right side up), and how unlike."""
    unlike = [float(np.abs(_stored(image, o).astype(int) - wanted).mean()) for o in range(1, 9)]
    return 1 + int(np.argmin(unlike)), unlike[0]


@cache
def _sample() -> DatasetSplit:
    return read_sample().train


def _stored(upright: Pixels, orientation: int) -> Pixels:
    """How a camera that was held so stores an image."""
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
            opaque = (pixels < 255).any(axis=2)
            colours = np.where(opaque[..., None], pixels, np.uint8(0))  # what does not show is black
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
    """Complaints about a store that was prepared from such a folder."""
    dataset = open_source(str(source), source, test_share=0.2, seed=0)
    for split in ("train", "test"):
        skipped = {Path(entry["file"]).name for entry in store.manifest["splits"][split]["skipped"]}
        names = [path.name for path in dataset.splits[split].images if path.name not in skipped]
        for name, image in zip(names, store.split(split).images, strict=True):
            wanted = np.dstack([huge_original()] * 3) if name == HUGE else original(int(name[:5]))[0]
            up, unlike = way_up(np.asarray(image), expected(wanted, store.image_size[0]))
            if up != 1 or unlike > UNLIKE:
                yield f"{split} {name}: orientation {up}, {unlike:.1f} levels away"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["make", "check"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", type=Path, help="the folder of photographs, for check")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--huge-side", type=int, default=20_000)
    arguments = parser.parse_args()
    if arguments.what == "make":
        make(arguments.folder, arguments.count, arguments.huge_side)
        return
    complaints = [*check(PreparedStore.open(arguments.folder), arguments.source)]
    print("\n".join(complaints) or "all as they should be")
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()

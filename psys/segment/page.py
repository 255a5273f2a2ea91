"""The gallery as one self-contained HTML file with embedded pictures and a short script."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

_PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Masks of $store</title>
<meta name="viewport" content="width=device-width">
<style>
  body { font: 14px system-ui, sans-serif; margin: 1.5rem; background: #fafafa; color: #222 }
  h1 { font-size: 1.4rem; margin: 0 } p { max-width: 60rem; line-height: 1.4 }
  nav { position: sticky; top: 0; padding: .6rem 0; background: #fafafa; display: flex; gap: 1.2rem; flex-wrap: wrap }
  main { display: grid; grid-template-columns: repeat(auto-fill, minmax(312px, 1fr)); gap: .8rem }
  figure { margin: 0; padding: 6px; background: #fff; border: 1px solid #ddd; border-radius: 6px; width: max-content }
  figure.unusable { border-color: #d33; background: #fff2f2 }
  img { width: 96px; height: 96px; image-rendering: $rendering; vertical-align: top }
  img + img { margin-left: 4px }
  img:last-of-type { background: repeating-conic-gradient(#ccc 0 25%, #fff 0 50%) 0 0 / 12px 12px }
  figcaption { margin-top: 4px } small { color: #666; display: block } [hidden] { display: none }
</style></head><body>
<h1>Masks of $store</h1>
<p>$summary Each item shows the image, its mask and its foreground; a mask in a red frame is not used. <b>Doubt</b> is
the mean rank over the quality metrics, from 0 (best of all training images in every metric) to 1 (worst).</p>
<nav>
  <label>Class <select id="class"><option value="">all</option>$options</select></label>
  <label>Order <select id="order"><option value="doubt">worst first</option>$metrics</select></label>
  <label>Show <select id="which"><option value="">all</option><option value="worst">the worst</option>
    <option value="random">the random ones</option><option value="unusable">not used</option></select></label>
  <output id="count"></output>
</nav>
<main>
$items
</main>
<script>
  const get = id => document.getElementById(id), main = document.querySelector("main");
  const items = [...main.children];
  function show() {
    const label = get("class").value, which = get("which").value, [key, way] = get("order").value.split("/");
    let shown = 0;
    for (const item of items) {
      item.hidden = label && item.dataset.label !== label || which && !item.classList.contains(which);
      shown += !item.hidden;
    }
    const bad = item => key === "doubt" && item.classList.contains("unusable") ? 2 : +item.dataset[key];
    main.append(...[...items].sort((a, b) => way === "up" ? bad(a) - bad(b) : bad(b) - bad(a)));
    get("count").value = shown + " shown";
  }
  for (const id of ["class", "order", "which"]) get(id).onchange = show;
  show();
</script>
</body></html>
""")


class GalleryItem(NamedTuple):
    """One training image with its mask."""

    row: int  # in the store
    label: int
    image: NDArray[np.uint8]  # (H, W, 3) RGB
    mask: NDArray[np.bool_]  # (H, W)
    usable: bool
    metrics: dict[str, float]  # quality metrics, 0..1
    doubt: float  # 0..1
    is_random: bool  # drawn at random from the images that are not among the worst


def write_page(
    items: Sequence[GalleryItem], classes: Sequence[str], folder: Path, total: int, unusable: int, picture: int
) -> None:
    """Write gallery.html into the store's `folder`.

    total: training images of the store; unusable: those without a usable mask; picture: largest side of an embedded
    picture in pixels.
    """
    worst = sum(not item.is_random for item in items)
    summary = f"{total:,} training images, {unusable:,} with a mask that is not used. Shown are the {worst:,} worst" + (
        f" and {len(items) - worst:,} drawn at random from the others." if worst < len(items) else "."
    )
    labels = sorted({item.label for item in items}, key=lambda label: classes[label])
    names = list(items[0].metrics) if items else []
    page = _PAGE.substitute(
        store=escape(folder.name),
        summary=summary,
        rendering="pixelated" if items and max(items[0].mask.shape) < picture else "auto",
        options="".join(f'<option value="{label}">{escape(classes[label])}</option>' for label in labels),
        metrics="".join(
            f'<option value="{_key(name)}/{way}">{_words(name)}, {text}</option>'
            for name in names
            for way, text in (("up", "smallest first"), ("down", "largest first"))
        ),
        items="\n".join(_figure(item, classes[item.label], picture) for item in items),
    )
    # A class name may contain bytes that are not UTF-8.
    (folder / "gallery.html").write_text(page, encoding="utf-8", errors="backslashreplace")


def _figure(item: GalleryItem, name: str, picture: int) -> str:
    kinds = ["random" if item.is_random else "worst", *([] if item.usable else ["unusable"])]
    numbers = {"doubt": item.doubt, **item.metrics}
    data = " ".join(f'data-{key.replace("_", "-")}="{value:.4f}"' for key, value in numbers.items())
    shown = ", ".join(f"{_words(key)} {value:.2f}" for key, value in numbers.items())
    opaque = item.mask.astype(np.uint8) * 255
    images = (item.image, opaque, np.dstack([item.image, opaque]))
    return (
        f'<figure class="{" ".join(kinds)}" data-label="{item.label}" {data}>'
        + "".join(f'<img alt="" src="{_embedded(image, picture)}">' for image in images)
        + f"<figcaption><b>{escape(name)}</b> #{item.row}<small>{shown}</small></figcaption></figure>"
    )


def _embedded(image: NDArray[np.uint8], picture: int) -> str:
    """A data: URI of grey, RGB or RGBA pixels, reduced to at most `picture` pixels a side."""
    scale = picture / max(image.shape[:2])
    if scale < 1:
        image = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    if image.ndim == 3:
        image = np.concatenate([image[..., 2::-1], image[..., 3:]], axis=2)  # OpenCV expects BGR
    _, data = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 90])
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode()


def _words(name: str) -> str:
    return name.replace("_", " ")


def _key(name: str) -> str:
    """The name of the attribute data-some-metric in the script's dataset: someMetric."""
    first, *others = name.split("_")
    return first + "".join(part.title() for part in others)

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from psys.data.store import PreparedStore
from psys.segment import gallery
from psys.segment.gallery import doubt, draw_gallery
from psys.segment.page import GalleryItem, write_page


class Page(HTMLParser):
    """The attributes of all figure elements, the sources of all images, and all tag names of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.figures: list[dict[str, str | None]] = []
        self.images: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "figure":
            self.figures.append(dict(attrs))
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")


@pytest.fixture
def store(small_store: PreparedStore, tmp_path: Path) -> PreparedStore:
    return PreparedStore.open(Path(shutil.copytree(small_store.path, tmp_path / "store")))


def test_gallery_shows_the_worst_first_and_a_random_sample(
    store: PreparedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "WORST", 30)
    monkeypatch.setattr(gallery, "RANDOM", 20)
    path = draw_gallery(store, seed=0)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    kinds = [str(figure["class"]).split()[0] for figure in page.figures]
    assert kinds == ["worst"] * 30 + ["random"] * 20
    assert "160 training images" in text
    assert "Shown are the 30 worst and 20 drawn at random from the others." in text
    doubts = [float(figure["data-doubt"] or "") for figure in page.figures if "unusable" not in str(figure["class"])]
    worst = doubts[: 30 - (50 - len(doubts))]
    assert worst == sorted(worst, reverse=True)
    assert max(doubts[len(worst) :]) <= worst[-1]
    assert draw_gallery(store, seed=0).read_text(encoding="utf-8") == text
    sheet = cv2.imread(str(store.path / "gallery.png"))
    assert sheet is not None
    assert sheet.shape[1] == 6 * (3 * 96 + 2)


def test_page_is_self_contained(store: PreparedStore) -> None:
    text = draw_gallery(store, seed=0).read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.images) == 3 * len(page.figures) == 3 * 160
    assert all(image.startswith("data:image/webp;base64,") for image in page.images)
    assert not re.search(r"https?:|//[a-z]|@import|<link", re.sub(r"base64,[\w+/=]*", "", text))


def test_names_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)"
    folder.mkdir()
    names = ('<img src=x onerror="alert(1)">', "a&b $items", "caf\udce9")
    pixels = np.zeros((40, 200, 3), np.uint8)
    items = [GalleryItem(row, row, pixels, pixels[..., 0] > 0, row > 0, {"share": 0.5}, 0.5, False) for row in range(3)]
    write_page(items, names, folder, 3, 1, 96)
    text = (folder / "gallery.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.images) == 9
    assert text.count("<script>") == 1
    assert "<b>&lt;img src=x onerror=&quot;alert(1)&quot;&gt;</b>" in text
    assert "<b>a&amp;b $items</b>" in text


def test_doubt_is_the_mean_rank_and_ties_share_a_rank() -> None:
    share = np.array([0.3, 0.9, 0.3, 0.3, 0.0], np.float32)
    np.testing.assert_allclose(doubt({"share": share}), [0.25, 1, 0.25, 0.25, 0.75])
    contact = np.array([0.0, 1.0, 0.5, 0.25, 0.75], np.float32)
    both = doubt({"share": share, "border_contact": contact, "compactness": 1 - contact})
    np.testing.assert_allclose(both, [0.25 / 3, 1, 1.25 / 3, 0.75 / 3, 0.75])

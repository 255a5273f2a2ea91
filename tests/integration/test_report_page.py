"""The report in a real browser, headless and without a network: its script runs, and figures are read off the page."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from psys.tradeoff.analysis import analyze
from psys.tradeoff.report import render
from psys.tradeoff.report.figures import with_interval
from psys.tradeoff.statistics import Summary
from psys.tradeoff.words import PERCENT, Unit, confidence, seconds_unit
from tests.support.outcomes import bits, outcome, study, trial

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: the page cannot be opened")

IMAGES = Unit("", decimals=0)
PROBE = """<script>
  const seen = {width: innerWidth, content: document.documentElement.scrollWidth, tips: []};
  const shownOf = selector => [...document.querySelectorAll(selector)].filter(each => each.getClientRects().length);
  for (const chart of shownOf('.chart[data-by="train_seconds"]')) {
    const box = chart.getBoundingClientRect(), scale = box.width / chart.viewBox.baseVal.width;
    for (const line of chart.querySelectorAll(".thin")) {
      const last = [...line.getAttribute("d").matchAll(/[ML]([^ ]+) ([^L]+)/g)].pop();
      chart.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + scale * last[1],
        clientY: box.top + scale * last[2]}));
      seen.tips.push(document.getElementById("tip").textContent);
    }
  }
  seen.charts = shownOf(".chart").length;
  seen.cells = shownOf("td").map(each => each.textContent);
  document.querySelector('.chip[data-arm="1"]').click();
  seen.hidden = [...document.querySelectorAll('.arm[data-arm="1"]')].every(each => each.style.display === "none");
  seen.others = [...document.querySelectorAll('.arm[data-arm="0"]')].some(each => each.style.display === "none");
  seen.blocks = [...document.querySelectorAll("[data-block]")].map(each => [each.dataset.block, !each.hidden]);
  parent.postMessage(seen, "*");
</script></body>"""
# A window has at least 500 pixels: a narrower screen is a frame.
FRAME = """<!DOCTYPE html><body><iframe src="{page}" style="width:{width}px; height:900px; border:0"></iframe>
<script>onmessage = message => {{ document.body.dataset.seen = JSON.stringify(message.data); }}</script></body>"""


def opened(page: Path, width: int, condition: str) -> dict[str, Any]:
    """What the probe of a page saw once the page's script had run."""
    frame = page.parent / f"{condition}-{width}.html"
    frame.write_text(FRAME.format(page=f"{page.name}#{condition}", width=width), encoding="utf-8")
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent / 'profile'}"),
        *("--window-size=1300,1000", "--virtual-time-budget=10000", "--dump-dom", frame.as_uri()),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = re.search(r'data-seen="(.*?)"', dom)
    assert seen is not None, dom
    content: dict[str, Any] = json.loads(unescape(seen[1]))
    return content


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A page with a probe, and its figures: arms that a number names, two conditions, four seeds."""
    trials = [
        trial(
            arm,
            seed,
            outcome((0.3, 0.4 + seed / 20 + number / 100), 20.0 - number + seed, bits(0.4 + seed / 50 + number / 20)),
            condition,
        )
        for condition in ("uniform", "one-slow")
        for number, arm in enumerate(("sync", "2"))
        for seed in (0, 1, 2, 3)
    ]
    files = render(analyze(study(trials, targets=(0.4,))), "name: by-hand", {"cores": 2})
    page = tmp_path_factory.mktemp("report") / "report.html"
    page.write_text(files["report.html"].replace("</body>", PROBE), encoding="utf-8")
    return page, json.loads(files["report.json"])


@pytest.mark.parametrize("width", [390, 1200])
def test_page_shows_the_figures_of_a_condition_and_reads_them_out(
    report: tuple[Path, dict[str, Any]], width: int
) -> None:
    path, figures = report
    page = opened(path, width, "one-slow")
    assert {tuple(block) for block in page["blocks"]} == {("0", False), ("1", True)}
    condition = figures["conditions"][1]
    for arm in condition["arms"].values():
        for name, unit in (("accuracy", PERCENT), ("seconds", seconds_unit(20.0)), ("images_per_second", IMAGES)):
            assert with_interval(Summary(**arm[name]["summary"]), unit) in page["cells"]
    assert confidence(condition["arms"]["2"]["versus"]["p_better"]) in page["cells"]
    tips = [re.split(r", seed |\nepoch |, | s\n|: ", tip) for tip in page["tips"]]
    of_condition = [each for each in figures["trials"] if each["condition"] == "one-slow"]
    points = {
        (each["arm"], each["seed"]): {name: values[-1] for name, values in each["outcome"]["points"].items()}
        for each in of_condition
    }
    assert {(arm, int(seed)) for arm, seed, *_ in tips} == points.keys()
    for arm, seed, epoch, seconds, quantity, shown in tips:
        point = points[arm, int(seed)]
        assert (float(epoch), quantity) == (point["epoch"], "held-out accuracy")
        assert float(seconds) == round(point["train_seconds"], 1)
        assert shown == f"{100 * point['validation_accuracy']:.1f} %"


@pytest.mark.parametrize("width", [390, 1200])
def test_page_fits_the_width_and_hides_an_arm(report: tuple[Path, dict[str, Any]], width: int) -> None:
    page = opened(report[0], width, "uniform")
    assert page["content"] <= page["width"] == width  # nothing makes the page scroll sideways
    assert page["charts"] == 13
    assert (page["hidden"], page["others"]) == (True, False)
    assert {tuple(block) for block in page["blocks"]} == {("0", True), ("1", False)}

"""The sweep's report in a real browser: nothing is refused or fails, and a wide table scrolls by itself."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest

from atrl.report.sweep import write_sweep_report
from tests.integration.test_report_browser import CHROMIUM, browse
from tests.report_run import HOSTILE
from tests.sweep_folder import write_job, write_sweep

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: install it to look at reports in it")

PROBE = """
const bars = [...document.querySelectorAll(".bar-cell .axis")].map((axis) => {
  const box = axis.getBoundingClientRect();
  const dot = axis.querySelector(".dot").getBoundingClientRect();
  return (dot.left + dot.width / 2 - box.left) / box.width;
});
const means = [...document.querySelectorAll("tbody tr")].filter((row) => row.querySelector(".bar-cell"))
  .map((row) => parseFloat(row.querySelector(".bar-cell").previousElementSibling.textContent));
const tints = [...document.querySelectorAll(".grid tbody td")].map((cell) => getComputedStyle(cell).backgroundColor);
const drawn = [...document.querySelectorAll(".chart svg")].map((svg) => svg.getBoundingClientRect().height);
const sideways = document.documentElement.scrollWidth > document.documentElement.clientWidth;
const seen = { bars, means, tints, drawn, sideways };
document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) }));
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A sweep of two settings over three seeds, with a hostile setting in one of its jobs."""
    folder = write_sweep(tmp_path_factory.mktemp("sweep"))
    write_job(folder / "99", number=99, status="failed", error=HOSTILE, credit__anchor_ratio=HOSTILE)
    return write_sweep_report([folder], folder)


def test_page_opens_clean_and_hostile_text_stays_inert(report, tmp_path):
    document, console = browse(report, tmp_path / "profile")
    assert console == []
    assert "<title>demo · atrl sweep report</title>" in document  # what the hostile text would change
    assert "<script" not in document and HOSTILE in unescape(document)


def test_what_is_drawn_is_what_is_written(report, tmp_path):
    # The page's policy admits no script, so the probe goes into a copy without it.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text(encoding="utf-8"))
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    document, console = browse(probed, tmp_path / "profile")
    assert console == []
    seen = json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', document, re.DOTALL)[1]))
    assert len(seen["bars"]) == 8 and all(0 < place < 1 for place in seen["bars"])
    assert sorted(range(8), key=seen["bars"].__getitem__) == sorted(range(8), key=seen["means"].__getitem__)
    assert len(seen["tints"]) == 9 and len(set(seen["tints"])) > 5
    assert len(seen["drawn"]) == 3 and min(seen["drawn"]) > 100
    assert not seen["sideways"]

"""The run's report in a real browser: its script runs, follows pointer and keyboard, and nothing hostile does."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from report_run import HOSTILE, write_large_run, write_run

from atrl.report.build import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--enable-logging=stderr",
    "--virtual-time-budget=5000", "--window-size=1280,1600",
)  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: install it to look at reports in it")

# What a reader does, and what the page then shows; runs after the page's own script.
PROBE = """
const seen = {};
const look = (name, article) => {
  const cells = [...article.querySelectorAll(".heat rect")].map((cell) => Number(cell.getAttribute("fill-opacity")));
  const chosen = [...article.querySelectorAll(".t")].findIndex((token) => token.classList.contains("chosen"));
  const stops = [...article.querySelectorAll('.t[tabindex="0"]')].length;
  seen[name] = { cells, chosen, stops, readout: article.querySelector(".readout").textContent };
};
const [first, ...others] = [...document.querySelectorAll(".rollout")].filter((card) => card.querySelector(".heat"));
const tokens = first.querySelectorAll(".t");
const over = (token) => token.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
look("overview", first);
over(tokens[4]); look("pointed", first);
first.querySelector(".response").dispatchEvent(new PointerEvent("pointerleave")); look("left", first);
tokens[0].focus(); look("focused", first);
press("ArrowRight"); look("right", first);
press("End"); look("end", first);
press("ArrowRight"); look("beyond", first);
press("Home"); press("Escape"); look("escaped", first);
const clusters = first.querySelector("details.clusters");
const heads = first.querySelector("details.heads");
seen.closed = heads.querySelectorAll("canvas").length;
clusters.open = heads.open = true;
heads.dispatchEvent(new Event("toggle")); clusters.dispatchEvent(new Event("toggle"));
const all = [...first.querySelectorAll(".t")];
const marked = () => all.flatMap((token, i) => (token.classList.contains("in") ? [i] : []));
clusters.querySelector('tr[data-cluster="1"] button').focus(); seen.cluster = marked();
document.activeElement.blur(); seen.unmarked = marked();
const maps = heads.querySelectorAll("button");
maps[1].focus(); look("head", first);
maps[0].dispatchEvent(new PointerEvent("pointerover", { bubbles: true })); look("other_head", first);
heads.querySelector(".head-grid").dispatchEvent(new PointerEvent("pointerleave")); look("no_head", first);
seen.heads = [...maps].map((button) => button.getAttribute("aria-label"));
const long = others.find((card) => card.querySelector(".long"));
const button = long.querySelector("button.unfold");
const folded = long.querySelector(".response").clientHeight;
seen.before_unfolding = long.querySelectorAll(".t").length;
button.click();
seen.long = { folded, open: long.querySelector(".response").clientHeight, expanded: button.ariaExpanded };
over(long.querySelectorAll(".t")[4000]); look("pointed_long", long);
seen.sideways = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) }));
"""


def browse(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's document after its scripts ran, and what was written to the console."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A report with every odd rollout in it."""
    return write_report(write_run(tmp_path_factory.mktemp("run"), steps=40, samples=6))


def test_page_runs_clean_and_hostile_text_stays_inert(report, tmp_path):
    document, console = browse(report, tmp_path / "profile")
    assert console == []
    assert "<title>demo · atrl run report</title>" in document  # what the hostile text would change
    assert document.count('role="listbox"') == 9  # the script ran over every rollout
    assert document.count("<script") - document.count("<script>document.title=") == 2
    assert HOSTILE in unescape(document)


def test_policy_stops_a_script_that_got_in(report, tmp_path):
    broken = tmp_path / "broken.html"
    attack = "<img src='data:,x' onerror=\"document.title='owned'\"><script>document.title='owned'</script></body>"
    broken.write_text(report.read_text(encoding="utf-8").replace("</body>", attack), encoding="utf-8")
    document, console = browse(broken, tmp_path / "profile")
    assert "<title>demo · atrl run report</title>" in document
    assert any("Content Security Policy" in line for line in console)


def test_pointer_and_keyboard_switch_the_heat_map(report, tmp_path):
    # The page's policy admits no other script, so the probe goes into a copy without it.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text(encoding="utf-8"))
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    document, console = browse(probed, tmp_path / "profile")
    assert console == []
    seen = json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', document, re.DOTALL)[1]))

    overview = seen["overview"]
    assert overview["chosen"] == -1 and len(overview["cells"]) == 16 and max(overview["cells"]) == 1
    assert seen["pointed"]["chosen"] == 4 and "token 5 of" in seen["pointed"]["readout"]
    assert seen["pointed"]["cells"] != overview["cells"]
    assert seen["left"] == overview
    last = int(re.search(r"of (\d+)", seen["pointed"]["readout"])[1]) - 1
    assert [seen[name]["chosen"] for name in ("focused", "right", "end", "beyond")] == [0, 1, last, last]
    assert seen["focused"]["cells"] != seen["right"]["cells"]
    assert seen["escaped"]["chosen"] == -1 and seen["escaped"]["cells"] == overview["cells"]
    assert {seen[name]["stops"] for name in ("overview", "right", "end", "escaped")} == {1}
    assert seen["long"]["open"] > 4 * seen["long"]["folded"] and seen["long"]["expanded"] == "true"
    assert len(seen["pointed_long"]["cells"]) == 12 * 18 + 14 * 6  # both pictures
    assert not seen["sideways"]

    tokens = last + 1
    assert seen["cluster"] == list(range(1, tokens, 3)) and seen["unmarked"] == []
    assert seen["closed"] == 0  # heads are drawn when they are asked for
    assert seen["heads"] == ["layer 0, head 0: up to 0.2", "layer 1, head 0: up to 0.4"]
    assert seen["head"]["cells"] == [0] * 15 + [1] and seen["other_head"]["cells"] == [1, 0] * 8
    assert seen["no_head"]["cells"] == overview["cells"]
    assert seen["before_unfolding"] == 400


HEADS_PROBE = """
const seen = [...document.querySelectorAll("details.heads")].map((heads) => {
  heads.open = true;
  heads.dispatchEvent(new Event("toggle"));
  return [...heads.querySelectorAll("canvas")].map((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return [canvas.width, canvas.height, [...data].filter((_, i) => i % 4 === 3)];
  });
});
document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) }));
"""


def test_a_heads_small_map_shows_all_pictures(tmp_path):
    """Side by side: a head that looks at the second alone is not blank."""
    run = write_run(tmp_path / "run", steps=40, samples=0)
    (sample, *_) = (json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines() if "photo" in line)
    cells = bytes([255, 0, 0, 0, 0, 0, 128, 255])
    sample["heads"] = {
        "layers": 1, "heads": 2, "grids": [[1, 2], [2, 1]], "peaks": [0.1, 0.2],
        "levels": base64.b64encode(cells).decode(),
    }  # fmt: skip
    (run / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", write_report(run).read_text())
    (tmp_path / "probed.html").write_text(text.replace("</body>", f"<script>{HEADS_PROBE}</script></body>"))
    document, console = browse(tmp_path / "probed.html", tmp_path / "profile")
    assert console == []
    ((first, second),) = json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', document, re.DOTALL)[1]))
    assert first == [4, 2, [255, 0, 0, 0, 0, 0, 0, 0]] and second == [4, 2, [0, 0, 0, 128, 0, 0, 0, 255]]


OVERLAY_PROBE = """
const heads = document.querySelector("details.heads");
heads.open = true;
heads.dispatchEvent(new Event("toggle"));
heads.querySelectorAll("button")[1].focus();
const cells = [...document.querySelectorAll(".heat rect")].map((cell) => Number(cell.getAttribute("fill-opacity")));
const fact = [...document.querySelectorAll(".facts dd")].find((dd) => dd.textContent === "visual_dependency");
const line = document.createRange();
line.setStart(fact.firstChild, 0);
line.setEnd(fact.firstChild, "visual_".length);
const seen = { cells, lines: line.getClientRects().length };
document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) }));
"""


def test_a_heads_map_stays_on_its_picture_where_another_picture_is_gone(tmp_path):
    """And a long name in a tile breaks at its underscore."""
    run = write_run(tmp_path / "run", steps=40, samples=0)
    (sample, *_) = (json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines() if "photo" in line)
    sample["heads"] = {
        "layers": 1, "heads": 2, "grids": [[1, 2], [2, 1]], "peaks": [0.1, 0.2],
        "levels": base64.b64encode(bytes([255, 0, 0, 0, 255, 255, 0, 255])).decode(),
    }  # fmt: skip
    (run / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    (run / "samples" / "photo.jpg").unlink()
    left = json.loads((run / "summary.json").read_text())
    left["credit"] |= {"scheme": "visual_dependency", "num_clusters": None}
    (run / "summary.json").write_text(json.dumps(left))
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", write_report(run).read_text())
    (tmp_path / "probed.html").write_text(text.replace("</body>", f"<script>{OVERLAY_PROBE}</script></body>"))
    document, console = browse(tmp_path / "probed.html", tmp_path / "profile")
    assert console == []
    seen = json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', document, re.DOTALL)[1]))
    # The second head looked at the lower half of the second picture, whose overlay has 14 rows of 6 cells.
    assert seen == {"cells": [0] * 42 + [1] * 42, "lines": 1}


LARGE_PROBE = """
const long = document.querySelector(".rollout");
const seen = { elements: document.getElementsByTagName("*").length, heat: long.querySelectorAll(".heat rect").length };
long.querySelector("button.unfold").click();
const tokens = long.querySelectorAll(".t");
tokens[4095].dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
seen.tokens = tokens.length;
seen.readout = long.querySelector(".readout").textContent;
long.querySelector("details.heads").open = true;
long.querySelector("details.heads").dispatchEvent(new Event("toggle"));
seen.canvases = long.querySelectorAll("canvas").length;
seen.sideways = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) }));
"""


def test_ten_rollouts_of_4096_tokens_over_64_frames_stay_a_page(tmp_path):
    """Bounded in bytes and elements; the rest is made when a reader asks for it, and works then."""
    page = write_report(write_large_run(tmp_path / "run"))
    text = page.read_text(encoding="utf-8")
    assert len(text) < 16e6  # ten strips of 64 frames, their 256 maps, and 784 heads' are most of it
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    probed = tmp_path / "probed.html"
    probed.write_text(policy.sub("", text).replace("</body>", f"<script>{LARGE_PROBE}</script></body>"))
    document, console = browse(probed, tmp_path / "profile")
    assert console == []
    seen = json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', document, re.DOTALL)[1]))
    # 400 tokens, 1,024 cells of heat map and a graph of 12 clusters for each of ten.
    assert seen["elements"] < 10 * (400 + 1024 + 400)
    assert (seen["heat"], seen["tokens"], seen["canvases"]) == (1024, 4096, 784)
    assert "token 4096 of 4096" in seen["readout"] and not seen["sideways"]

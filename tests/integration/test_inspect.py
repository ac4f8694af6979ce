"""python -m atrl.inspect as a user runs it: what it prints, and the page in a real browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from tests.integration.conftest import REPOSITORY
from tests.integration.test_command_line import assert_refused
from tests.integration.test_report_browser import CHROMIUM, browse

# What a reader does on the page, and what it then shows; runs after the page's own scripts.
PROBE = """
const cards = [...document.querySelectorAll(".rollout")];
const look = () => cards.map((card) => ({
  chosen: [...card.querySelectorAll(".t")].findIndex((token) => token.classList.contains("chosen")),
  cells: [...card.querySelectorAll(".heat rect")].map((cell) => Number(cell.getAttribute("fill-opacity"))),
  readout: card.querySelector(".readout").textContent,
}));
const seen = { before: look() };
cards[1].querySelectorAll(".t")[4].dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
seen.pointed = look();
cards[1].querySelector(".response").dispatchEvent(new PointerEvent("pointerleave"));
seen.left = look();
const third = cards[0].querySelectorAll(".t")[2];
third.focus();
// Without a window to look at, on a busy machine, the page may not have the focus itself: then no event comes.
if (!document.hasFocus()) third.dispatchEvent(new FocusEvent("focusin", { bubbles: true }));
seen.focused = look();
seen.sideways = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) }));
"""


def inspect(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "atrl.inspect", *arguments]
    paths = os.pathsep.join([str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of an inspection with two schemes, and what was printed."""
    folder = tmp_path_factory.mktemp("inspect")
    schemes = ("credit=[token_level,entropy]", "credit.anchor_ratio=0.25")
    done = inspect(folder, "problem=3", *schemes, "hydra.run.dir=out")
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "out", done.stdout


def test_the_answer_is_printed_once_a_scheme_with_its_anchors_in_brackets(inspected) -> None:
    folder, printed = inspected
    record = json.loads((folder / "inspection.json").read_text())
    text, count = "".join(record["tokens"]), len(record["tokens"])
    assert record["finished"] and record["response"] == text.removesuffix("<|im_end|>")
    for name, ratio in (("token_level", 0.25), ("entropy", 0.2)):
        found = record["schemes"][name]
        assert sum(found["anchors"]) == int(ratio * count + 0.5)
        assert sum(found["weights"]) / count == pytest.approx(1.0, abs=1e-4)
        block = re.search(rf"^{name}: {count} tokens, .*\n(.*)$", printed, re.MULTILINE)[1]
        assert re.sub(r"[\[\]]", "", block) == text and "\x1b" not in block
        inside = re.sub(r"[\[\]]", "", "".join(re.findall(r"\[.*?\]", block)))
        pairs = zip(record["tokens"], found["anchors"], strict=True)
        assert inside == "".join(token for token, anchor in pairs if anchor)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: install it to look at the page in it")
def test_a_token_that_is_pointed_at_is_shown_in_every_card(inspected, tmp_path) -> None:
    page = inspected[0] / "inspection.html"
    document, console = browse(page, tmp_path / "profile")
    assert console == [] and document.count('role="listbox"') == 2
    # The page's policy admits no other script, so the probe goes into a copy without it.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    document, console = browse(probed, tmp_path / "profile")
    assert console == []
    seen = json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', document, re.DOTALL)[1]))
    assert [card["chosen"] for card in seen["before"]] == [-1, -1]
    assert [card["chosen"] for card in seen["pointed"]] == [4, 4]
    assert all(card["readout"].count("token 5 of") == 1 for card in seen["pointed"])
    assert all(one["cells"] != other["cells"] for one, other in zip(seen["pointed"], seen["before"], strict=True))
    assert seen["left"] == seen["before"] and [card["chosen"] for card in seen["focused"]] == [2, 2]
    assert not seen["sideways"]


def test_a_question_of_ones_own_about_a_picture(inspected, tmp_path) -> None:
    """The same picture and words as the problem's get the same answer."""
    record = json.loads((inspected[0] / "inspection.json").read_text())
    words = record["question"].removeprefix("<image>")
    picture = inspected[0] / record["images"][0]
    done = inspect(tmp_path, f"question='{words}'", f"image={picture}", "credit=entropy", "hydra.run.dir=out")
    assert (done.returncode, done.stderr) == (0, "")
    own = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert own["tokens"] == record["tokens"] and own["gold"] == ""
    assert own["schemes"]["entropy"]["weights"] == record["schemes"]["entropy"]["weights"]


def test_a_video_is_shown_frame_by_frame(tmp_path) -> None:
    asked = ("data=moving_markers", "problem=0", "rollout.video_frames=4", "rollout.max_response_tokens=16")
    schemes = ("credit=[atrl,vppo]", "credit.scale_low=1", "sample=true")
    done = inspect(tmp_path, *asked, *schemes, "hydra.run.dir=out")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert len(record["timestamps"][0]) == 4 and record["timestamps"][0][0] == 0
    page = (tmp_path / "out" / "inspection.html").read_text()
    assert page.count('class="picture strip"') == 2 and page.count('<svg class="heat"') == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["nothing is asked", "question", "problem"]),
        (["problem=0", "credit=vppo"], ["credit=vppo", "compares rollouts", "credit.scale_low=1"]),
        (["question=What?", "credit=oracle"], ["credit=oracle"]),
        (["problem=0", "credit=[atrl,entropi]"], ["entropi", "entropy"]),
        (["problem=0", "credit=[atrl,entropy]", "credit.num_cluster=3"], ["credit.num_cluster", "credit.num_clusters"]),
        (["question=What?", "image=no.png"], ["no.png"]),
        (["problem=0", "checkpoint=tinny"], ["tinny", "tiny"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_can_not_be_done_is_one_line(arguments, says, tmp_path) -> None:
    assert_refused(inspect(tmp_path, *arguments), says)

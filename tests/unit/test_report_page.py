"""The run's report as a page: it needs nothing outside itself, and what the model wrote stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from report_run import COMMAND, HOSTILE, grounding, summary, write_run

from atrl.report import __main__ as command_line
from atrl.report.build import write_report
from atrl.report.run_folder import RunFolder
from atrl.report.text import breakable


class _Page(HTMLParser):
    """Every start tag with its attributes, and the content of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data

    def values(self, *names: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags for name in names if name in attributes]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run of which every rollout is shown, so that the hostile one is."""
    return write_run(tmp_path_factory.mktemp("run"), steps=40, samples=6)


@pytest.fixture(scope="module")
def page_text(run_dir) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


def test_a_long_name_may_end_a_line_at_its_underscores_and_stays_text():
    assert breakable("visual_dependency <b>") == "visual_<wbr>dependency &lt;b&gt;"


def test_page_needs_nothing_outside_itself(page_text):
    page = _Page(page_text)
    assert all(value.startswith("data:image/") for value in page.values("src"))
    assert all(value.startswith("#chart-") for value in page.values("href", "xlink:href"))
    assert not page.values("srcset", "action", "poster", "background")
    assert not {"link", "iframe", "object", "embed", "form", "a"} & {tag for tag, _ in page.tags}
    urls = set(re.findall(r"https?://[^\s\"'<>)]+", page_text))
    assert urls <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, never fetched
    assert set(re.findall(r"url\((.)", page_text)) == {"#"}
    assert "@import" not in page_text


def test_hostile_text_stays_text(page_text):
    assert page_text.count("&lt;/script&gt;&lt;/span&gt;&lt;img src=x") >= 4  # question, gold, id, response, part
    assert HOSTILE not in page_text
    page = _Page(page_text)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert len(page.scripts) == 2
    assert "<" not in page.scripts[0]
    assert len(json.loads(page.scripts[0])) == 9


def test_policy_admits_only_the_pages_own_script(page_text):
    policy = next(value for value in _Page(page_text).values("content") if "default-src" in value)
    digest = base64.b64encode(hashlib.sha256(_Page(page_text).scripts[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]


def test_page_tells_the_run(page_text, run_dir):
    text = re.sub(r"<[^>]*>", "", page_text)
    for words in ("44.1\u202f%", "86.9\u202f%", "rose by 42.8 points", "1 min 08 s", "39.8\u202f%", "11,204", COMMAND):
        assert words in text, words
    assert "clip_high: 0.28" in text
    assert page_text.count('class="response long"') == 1
    assert not list(run_dir.glob("*.part"))


def test_page_shows_what_the_pictures_are_worth(page_text):
    table = re.search(r'<div class="grounding">(.*?)</table>', page_text, re.DOTALL).group(1)
    rows = [re.sub(r"<[^>]*>", " ", row).split() for row in re.findall(r"<tr>(.*?)</tr>", table)]
    # `split` takes the thin space before a sign for a space like any other.
    assert [" ".join(row) for row in rows] == [
        "the same problems before after",
        "with their own pictures 44.5 % 36.2 – 53.1 % 85.9 % 78.9 – 90.9 %",
        "pictures blanked 11.7 % 7.2 – 18.4 % 12.5 % 7.8 – 19.3 %",
        "another problem’s pictures 10.2 % 6.0 – 16.6 % 8.6 % 4.9 – 14.7 %",
    ]
    assert "n = 128 of the held-out problems" in page_text
    assert "Of the other problems’ pictures 3 come from one with the same gold answer" in page_text  # of grounding.json
    assert "for want of another problem’s pictures" not in page_text  # none is left out


def test_a_videos_frames_are_shown_as_a_strip(tmp_path):
    """Between two pictures, with the times of its frames and attention over them; each kind counted by itself."""
    from PIL import Image

    (tmp_path / "samples").mkdir()
    for name, size in (("a", (20, 20)), ("strip", (1600, 200)), ("b", (30, 20))):
        Image.new("RGB", size, "teal").save(tmp_path / f"samples/{name}.png")
    (tmp_path / "summary.json").write_text(json.dumps(summary(steps=1)))
    row = {
        "step": 1, "problem": "p", "question": "See <image>, <video> and <image>.", "gold": "1", "response": "ab",
        "tokens": ["a", "b"], "weights": [1, 1], "advantage": 0.5, "reward": 1.0, "parts": {}, "status": "right",
        "images": [f"samples/{name}.png" for name in ("a", "strip", "b")], "timestamps": [None, [0, 0.5, 12.5], None],
        "attention": [[[[0.1]]] * 2, [[[0.1, 0.2, 0.3]]] * 2, [[[0.4]]] * 2],
    }  # fmt: skip
    (tmp_path / "samples.jsonl").write_text(json.dumps(row) + "\n")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    page = _Page(text)
    named, names = [attributes for tag, attributes in page.tags if tag == "img"], ["picture 1", "video 1", "picture 2"]
    assert [image["alt"] for image in named] == [f"{name} of the problem" for name in names]
    assert [image["width"] for image in named] == ["20", "1024", "30"]  # strips may be wider than pictures
    assert re.findall(r'class="mark">([^<]*)<', text) == names
    assert "Video 1: 3 frames, 0 to 12.5 s" in text
    assert text.count('class="picture strip"') == 1
    maps = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("class") == "heat"]
    assert [attributes["viewbox"] for attributes in maps] == ["0 0 1 1", "0 0 3 1", "0 0 1 1"]


def test_the_pictures_of_a_conversation_keep_their_numbers(tmp_path):
    """The question's own is the second: the first belongs to what was said before, which is shown too."""
    from PIL import Image

    (tmp_path / "summary.json").write_text(json.dumps(summary(steps=1)))
    for name in ("a", "b"):
        Image.new("RGB", (20, 20), "teal").save(tmp_path / f"{name}.png")
    said = [{"role": "user", "text": "Is <image> red?"}, {"role": "assistant", "text": "It is <grey>."}]
    row = {
        "step": 1, "problem": "p", "question": "And what of <image>?", "history": said, "gold": "1", "response": "a",
        "tokens": ["a"], "weights": [1], "advantage": 0.5, "reward": 1.0, "parts": {}, "status": "right",
        "images": ["a.png", "b.png"],
    }  # fmt: skip
    (tmp_path / "samples.jsonl").write_text(json.dumps(row) + "\n")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    question = re.search(r'<p class="question">(.*?)</p>', text, re.DOTALL).group(1)
    assert question == (
        'user: Is<span class="mark">picture 1</span>red?\nassistant: It is &lt;grey&gt;.\nuser: And what of'
        '<span class="mark">picture 2</span>?'
    )


def test_report_is_deterministic(run_dir, page_text):
    assert write_report(run_dir).read_text(encoding="utf-8") == page_text


def test_report_of_a_bare_summary_says_what_is_missing(tmp_path):
    nothing = {"before": None, "after": None, "before_ci95": None, "after_ci95": None, "samples": None}
    bare = summary(steps=0, accuracy=nothing, seconds={}, rewards=dict.fromkeys(summary()["rewards"], 0))
    (tmp_path / "summary.json").write_text(json.dumps(bare))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    for words in (
        "Accuracy was not measured.", "No phase was timed.", "No rollouts were recorded.", "left no config.yaml",
        "Not logged in this run: Reward, Status of rollouts",
    ):  # fmt: skip
        assert words in text, words
    assert "What the pictures are worth" not in text


def test_the_verdict_says_what_its_interval_takes_for_granted(tmp_path):
    both = summary()["accuracy"]
    shown = {}
    paired = {"problems": 512, "ci95": [0.38, 0.47], "gained": 230, "lost": 11, "p": 0.0}
    for name, accuracy in (
        ("with", both),
        ("without", both | {"before_ci95": None}),
        ("paired", both | {"paired": paired}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary(accuracy=accuracy)))
        shown[name] = write_report(tmp_path / name).read_text(encoding="utf-8")
    words = "takes before and after for independent"
    assert words in shown["with"] and words not in shown["without"] + shown["paired"]
    assert "230 problems gained, 11 lost" in shown["paired"] and "gained" not in shown["with"]


def test_greedy_accuracy_stands_beside_the_sampled_one(tmp_path):
    both = summary()["accuracy"]
    both["greedy"] = both | {"before": 0.5, "after": 0.75}
    shown = {}
    for name, accuracy in (("with", both), ("without", both | {"greedy": None}), ("older", summary()["accuracy"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary(accuracy=accuracy)))
        shown[name] = write_report(tmp_path / name).read_text(encoding="utf-8")
    assert "Greedily (T = 0): 50.0\u202f% → 75.0\u202f%." in shown["with"]
    assert "Greedily" not in shown["without"] + shown["older"]


# --- Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [1.0]}, "line 2: Value error, weights has 1 entries for 2 tokens"),
        ({"weights": [1.0, -1.0]}, r"line 2: weights\.1: .*greater than or equal to 0"),
        ({"weights": [1.0, float("nan")]}, r"line 2: weights\.1: .*finite"),
        ({"status": "maybe"}, "line 2: status: "),
        (
            {"images": ["x"], "attention": [[[1.0], [2.0]]]},
            r"line 2: .*must be \[2 tokens\]\[rows\]\[columns\]",
        ),
        ({"images": ["x"], "attention": [[[[1.0]], [[1.0, 2.0]]]]}, "line 2: attention: "),
        ({"images": [], "attention": [[[[1.0]], [[1.0]]]]}, "attention has 1 entries for 0 images"),
        ({"reading": [True]}, "reading has 1 entries for 2 tokens"),
        ({"entropy": [0.1, 0.2, 0.3]}, "entropy has 3 entries for 2 tokens"),
        ({"images": ["a.png"], "attention": [[[[]], [[]]]]}, r"attention must be .* got shape \[2, 1, 0\]"),
        ({"images": ["x"], "timestamps": []}, "timestamps has 0 entries for 1 images"),
        ({"images": ["x"], "timestamps": [[]]}, "at least 1 item"),
    ],
)
def test_malformed_samples_are_named_in_one_line(tmp_path, change, message):
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    good = dict(
        step=1, problem="p", question="<image>q", gold="1", response="ab", tokens=["a", "b"], weights=[1.5, 0.5],
        advantage=0.5, reward=1.0, parts={}, status="right", images=[],
    )  # fmt: skip
    (tmp_path / "samples.jsonl").write_text(json.dumps(good) + "\n\n")
    assert len(RunFolder.read(tmp_path).samples) == 1  # blank lines are no samples
    (tmp_path / "samples.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        RunFolder.read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": 1.5}, r"grounding\.json: after\.blank\.accuracy: .*less than or equal to 1"),
        ({"ci95": [0.1]}, r"grounding\.json: after\.blank\.ci95"),
        (None, r"grounding\.json: after\.blank: .*: write the file again"),
    ],
)
def test_malformed_grounding_is_named_in_one_line(tmp_path, change, message):
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    found = grounding()
    found["after"]["blank"] = None if change is None else found["after"]["blank"] | change
    (tmp_path / "grounding.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=message) as caught:
        RunFolder.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_malformed_summaries_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    for content, words in (
        (None, "summary.json not found"),
        ("{", "is not valid JSON"),
        (json.dumps({key: value for key, value in summary().items() if key != "tokens"}), "tokens: Field required"),
    ):
        if content is not None:
            (tmp_path / "summary.json").write_text(content)
        assert command_line.main() == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    assert command_line.main() == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")


def test_a_single_run_has_no_baseline(tmp_path, capsys, monkeypatch):
    """It was left unsaid that the option does nothing."""
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path), "--baseline", "credit=uniform"])
    assert command_line.main() == 2
    said = capsys.readouterr().err
    assert said == f"error: --baseline credit=uniform: {tmp_path} is one run, to which there is nothing to compare\n"
    assert not (tmp_path / "report.html").exists()

"""A sweep's table as CSV, Markdown, LaTeX and a page, with hostile settings in it."""

from __future__ import annotations

import csv
import io
import re
import sys
from html.parser import HTMLParser

import pytest

from atrl.report import __main__ as command_line
from atrl.report.figures import probability
from atrl.report.sweep import write_sweep_report
from atrl.report.sweep.build import span
from atrl.report.sweep.export import (
    difference,
    inert,
    latex,
    markdown,
    points,
    to_csv,
    to_latex,
    to_markdown,
)
from atrl.report.sweep.runs import find_runs
from atrl.report.sweep.statistics import Estimate
from atrl.report.sweep.table import make_table
from tests.report_run import HOSTILE
from tests.sweep_folder import write_job, write_sweep

FORMULA = '=cmd|"/c calc"!A1'


@pytest.fixture
def hostile(tmp_path):
    """Two runs, one with settings that would do harm on a page and in a spreadsheet."""
    write_job(tmp_path / "0", credit__num_clusters=HOSTILE, credit__anchor_ratio=FORMULA)
    write_job(tmp_path / "1", credit__num_clusters="50% & $x_1$ #~^\\{}|`*<i>", credit__anchor_ratio="-1+2")
    return tmp_path


def test_figures_are_readable():
    assert points(Estimate(0.4406, 0.0234, 3)) == "44.1 ± 2.3"
    assert points(Estimate(-0.0123, 0.004, 3), sign=True) == "−1.2 ± 0.4"
    assert points(Estimate(0.0123, None, 1), sign=True) == "+1.2"
    assert points(Estimate(-0.0001, 0.004, 3), sign=True) == "+0.0 ± 0.4" and points(None) == "–"
    assert [probability(p) for p in (None, 0.0004, 0.0321, 0.25, 1.0, 0.999, 0.0496, 0.0503)] == [
        "–", "< 0.001", "0.032", "0.25", "1", "1", "0.0496", "0.0503",
    ]  # fmt: skip


def test_one_seed_has_a_difference_and_equal_ones_are_called_that(tmp_path):
    """Of seed 0 alone 0.6 - 0.5; of seeds 0 and 1 twice 0; neither has a half width, also not in the CSV."""
    for number, (credit, seed, accuracy) in enumerate(
        [("uniform", 0, 0.5), ("uniform", 1, 0.7), ("none", 0, 0.6), ("atrl", 0, 0.5), ("atrl", 1, 0.7)]
    ):
        write_job(tmp_path / str(number), number=number, credit=credit, seed=seed, accuracy=accuracy)
    table = make_table(find_runs([tmp_path]))
    assert [difference(row) for row in table.rows] == ["baseline", "+10.0", "+0.0, all equal"]
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [line["less the baseline half of 95 % interval"] for line in lines] == ["", "", ""]
    assert [(line["p (t)"], line["p (sign)"]) for line in lines] == [("", ""), ("", ""), ("", "1.0")]


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_formulas_are_text(text):
    assert inert(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-0.5", "+3", "-1e-05", "atrl", "a=b", ""])
def test_what_is_no_formula_stays(text):
    assert inert(text) == text


def test_csv_holds_plain_numbers_and_no_formula(hostile):
    table = make_table(find_runs([hostile]))
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert rows[0]["after mean"] == "0.5" and rows[0]["after half of 95 % interval"] == ""
    assert rows[0]["memory bytes"] == "2310000000"
    assert rows[0]["credit.anchor_ratio"] == f"'{FORMULA}" and rows[1]["credit.anchor_ratio"] == "'-1+2"
    assert rows[0]["credit.num_clusters"] == HOSTILE
    cells = [cell for row in csv.reader(io.StringIO(to_csv(table))) for cell in row]
    assert not [cell for cell in cells if cell[:1] in ("=", "@", "+")]


def test_markdown_stays_a_table(hostile):
    lines = to_markdown(make_table(find_runs([hostile]))).splitlines()
    assert len(lines) == 4
    columns = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert len(set(columns)) == 1, columns
    assert not re.search(r"(?<!\\)<", "".join(lines))
    assert markdown("a|b\n<i>_x_`[") == r"a\|b \<i\>\_x\_\`\["


def test_latex_is_text(hostile):
    assert latex("50% & $x_1$ #~^\\{}") == (
        r"50\% \& \$x\_1\$ \#\textasciitilde{}\textasciicircum{}\textbackslash{}\{\}"
    )
    assert latex("−1.2 ± 0.4") == r"$-$1.2 $\pm$ 0.4"
    text = to_latex(make_table(find_runs([hostile])))
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 3 and len({len(re.findall(r"(?<!\\)&", line)) for line in lines}) == 1
    assert text.count(r"\begin{") == text.count(r"\end{") == 1


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_a_page_needs_nothing_and_hostile_text_stays_text(hostile):
    text = write_sweep_report([hostile], hostile).read_text(encoding="utf-8")
    page = _Tags(text)
    assert not {"script", "img", "link", "iframe", "object", "form", "a"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "src"]
    assert set(re.findall(r"https?://[^\s\"'<>)]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    policy = next(
        attributes["content"] for _, attributes in page.tags if "default-src" in attributes.get("content", "")
    )
    assert "default-src 'none'" in policy and "script-src" not in policy
    assert text.count("&lt;script&gt;") >= 2 and HOSTILE not in text


def test_a_page_tells_the_sweep(tmp_path):
    folder = write_sweep(tmp_path / "sweep")
    text = write_sweep_report([folder], folder).read_text(encoding="utf-8")
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", text))
    for words in (
        *("24 finished runs in 8 rows · 2 missing", "credit.anchor_ratio × credit.num_clusters", "row 1", "missing"),
        *("failed: the sampler hangs", "not begun", "python train.py -m credit.anchor_ratio=0.05,0.15,0.3 seed=0,1,2"),
    ):
        assert words in shown, words
    assert "<b>look</b>" not in text
    assert text.count('class="card chart"') == 3
    assert {path.name for path in folder.glob("sweep.*")} == {
        "sweep.html",
        "sweep.csv",
        "sweep.md",
        "sweep.tex",
        "sweep.json",
    }
    assert text == write_sweep_report([folder], folder).read_text(encoding="utf-8")


def test_accuracy_without_the_right_picture_is_shown_where_it_was_measured(tmp_path):
    write_job(tmp_path / "0", blank=(0.1, 0.25))
    write_job(tmp_path / "1", number=1, credit="uniform")
    table, page = make_table(find_runs([tmp_path])), write_sweep_report([tmp_path], tmp_path)
    first, second = csv.DictReader(io.StringIO(to_csv(table)))
    assert (first["blanked mean"], first["swapped mean"]) == ("0.25", "0.125") and second["blanked mean"] == ""
    text = page.read_text(encoding="utf-8")
    assert text.count('class="card chart"') == 5 and "Picture blanked" in text and "<em>Blanked</em>" in text
    alone = write_sweep_report([tmp_path / "1"], tmp_path / "to").read_text(encoding="utf-8")
    assert "Picture blanked" not in alone and "lanked" not in alone


def test_a_sweep_of_which_nothing_is_finished_still_has_a_page(tmp_path):
    write_job(tmp_path / "0", status="failed", error="bad")
    text = write_sweep_report([tmp_path], tmp_path).read_text(encoding="utf-8")
    assert "No run has finished." in text and "bad" in text


def test_one_run_is_a_sweep_too(tmp_path):
    write_job(tmp_path / "0", accuracy=None)
    text = write_sweep_report([tmp_path / "0"], tmp_path / "to").read_text(encoding="utf-8")
    assert "1 finished run in 1 row" in text


def test_a_sweep_that_measured_no_accuracy_has_a_page(tmp_path):
    for number, credit in enumerate(("uniform", "atrl")):
        write_job(tmp_path / str(number), number=number, credit=credit, accuracy=None)
    text = write_sweep_report([tmp_path], tmp_path).read_text(encoding="utf-8")
    assert "2 finished runs in 2 rows" in text and "verdict-title" not in text and 'class="best"' not in text


def test_a_sweeps_own_baseline_waits_until_a_run_of_it_has_finished(tmp_path):
    write_job(tmp_path / "0", credit="atrl")
    write_job(tmp_path / "1", credit="none", number=1)
    for value in ("uniform", "none"):
        (tmp_path / "sweep.json").write_text(
            f'{{"command": "", "varied": ["credit"], "jobs": null, "baseline": {{"credit": "{value}"}}}}'
        )
        text = write_sweep_report([tmp_path], tmp_path).read_text(encoding="utf-8")
        assert f"baseline: row {2 if value == 'none' else 1}" in text


def test_the_scale_of_the_bars_holds_every_interval(tmp_path):
    """0.5 and 0.9 alone: 0.02 of room on both sides."""
    write_job(tmp_path / "0", accuracy=0.5, credit__num_clusters=2)
    write_job(tmp_path / "1", accuracy=0.9, credit__num_clusters=4)
    assert span(make_table(find_runs([tmp_path]))) == pytest.approx((0.48, 0.92))
    assert span(make_table([])) == (0.0, 1.0)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    folder = write_sweep(tmp_path / "sweep")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["report", *arguments])
        code = command_line.main()
        out, err = capsys.readouterr()
        return code, out.strip(), err.strip()

    assert call("sweep") == (0, "sweep/sweep.html", "")
    assert call(str(folder / "0"), str(folder / "1")) == (0, "sweep.html", "")
    assert call("sweep/0") == (0, "sweep/0/report.html", "")
    assert call("sweep/0", "--to", "there")[1] == "there/sweep.html"
    code, _, error = call("sweep", "--baseline", "credit=vppo")
    assert code == 2 and error.startswith("error: baseline credit: the runs do not differ by it") and "\n" not in error
    assert call("sweep", "--baseline", "credit.anchor_ratio=0.15")[0] == 0
    assert "baselines: row 4, 5, 6" in re.sub(r"\s+", " ", (folder / "sweep.html").read_text())
    with pytest.raises(SystemExit):
        call("sweep", "--baseline", "credit")

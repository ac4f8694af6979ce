"""The report's views of groups, clusters and densities, from figures worked out by hand."""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from report_run import HOSTILE, write_run

from atrl.report.build import write_report
from atrl.report.clusters import MAX_SHOWN, cluster_view
from atrl.report.density import density_charts
from atrl.report.details import GroupLine, Histogram
from atrl.report.groups import extremes, status_health, tally
from atrl.report.heatmaps import heat_maps
from atrl.report.run_folder import RunFolder
from atrl.types import Status
from tests.unit.test_report import sample


def group(step: int, problem: str, **statuses) -> GroupLine:
    return GroupLine(step=step, problem=problem, question="q", gold="g", response="r", statuses=statuses)


def test_a_status_is_told_early_from_late() -> None:
    groups = [
        group(1, "a", right=(1, 10, 1.0), wrong=(3, 60, 0.3)),
        group(2, "b", wrong=(4, 80, 0.4)),
        group(3, "c", right=(3, 90, 3.6), truncated=(1, 50, 0.0)),
    ]
    health = {row.status: (row.early, row.late) for row in status_health(groups)}
    assert list(health) == ["right", "wrong", "unparseable", "truncated"]
    early, late = health["right"]
    assert (early.share, early.reward, early.tokens) == (0.25, 1.0, 10)
    assert (late.share, late.reward, late.tokens) == (0.75, pytest.approx(1.2), 30)
    early, late = health["wrong"]
    assert (early.share, early.reward, early.tokens) == (0.75, pytest.approx(0.1), 20)
    assert (late.share, late.reward) == (0.0, None)  # there were rollouts, and none was wrong
    assert status_health([]) == [] and tally([], Status.RIGHT).share is None


def test_the_worst_and_best_are_of_the_last_third_and_each_problem_counts_once() -> None:
    groups = [
        group(1, "early", wrong=(4, 4, 0.0)),
        group(5, "again", wrong=(4, 4, 0.0)),
        group(6, "again", right=(4, 4, 4.0)),
        group(6, "half", right=(2, 2, 2.0), wrong=(2, 2, 0.2)),
        group(6, "poor", wrong=(4, 4, 0.2)),
        group(6, "none", wrong=(4, 4, 0.0)),
    ]
    worst, best = extremes(groups)
    assert [found.problem for found in worst] == ["none", "poor"]
    assert [found.problem for found in best] == ["again", "half"]
    assert extremes(groups[:1]) == ([], []) and extremes([]) == ([], [])


def test_clusters_are_ranked_by_their_densest_token() -> None:
    shown = sample(
        tokens=["a", " ", "c", "d"], weights=[1] * 4, density=[0.1, 0.3, 0.8, 0.4], anchors=[False, False, True, True],
        clusters={"of": [0, 0, 1, 0], "links": [[6, 2], [2, 0]]},
    )  # fmt: skip
    view = cluster_view(shown)
    first, second = view.nodes
    assert (first.number, first.size, first.anchors, first.words) == (1, 1, 1, ["c"])
    # Densities average 0.4: 0.8 is twice that; (0.1 + 0.3 + 0.4) / 3 is two thirds of it, and 0.4 the same.
    assert (first.load, first.peak) == (pytest.approx(2), pytest.approx(2))
    assert (second.size, second.load, second.peak) == (3, pytest.approx(2 / 3), pytest.approx(1))
    assert second.words == ["d", "␣", "a"]
    assert view.within == 0.75 and view.left_out == 0  # 6 of 8
    assert [link.width for link in view.links] == [8]
    assert cluster_view(sample()) is None


def test_of_many_clusters_the_most_loaded_are_drawn() -> None:
    count = MAX_SHOWN + 5
    shown = sample(
        tokens=["x"] * count, weights=[1] * count, density=[float(i) for i in range(count)],
        clusters={"of": list(range(count)), "links": [[0] * count] * count},
    )  # fmt: skip
    view = cluster_view(shown)
    assert [node.number for node in view.nodes] == list(range(count - 1, 4, -1))
    assert (view.left_out, view.links, view.within) == (5, [], None)


def test_a_histogram_at_both_ends_of_the_run() -> None:
    histograms = [Histogram(step=step, top=step, anchors=[0, 3], rest=[9, 0]) for step in (1, 4, 7)]
    charts = density_charts(histograms)
    assert [(chart.step, chart.share) for chart in charts] == [(1, 0.25), (7, 0.25)]
    assert "densities of 12 tokens at step 7, 0 to 7" in charts[1].svg
    ids = re.findall(r'\bid="([^"]+)"', "".join(chart.svg for chart in charts))
    assert len(ids) == len(set(ids))
    assert density_charts([]) == [] and len(density_charts(histograms[:1])) == 1


def test_heat_maps_may_be_of_some_tokens_alone() -> None:
    shown = sample(
        tokens=list("abcd"), weights=[0, 3, 0, 1], anchors=[False, True, False, False], images=["x"],
        attention=[[[[0.1, 0.2]], [[0.4, 0.0]]]], attended=[1, 3],
    )  # fmt: skip
    maps = heat_maps(shown)
    assert maps.kept == [1, 3] and maps.overview == [128, 255]  # the anchor's alone: 0.1 and 0.2
    assert list(base64.b64decode(maps.levels)) == [128, 255, 255, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attended": [2]}, "attended names a token beyond the 2"),
        ({"clusters": {"of": [0], "links": [[0]]}}, "clusters has 1 entries for 2 tokens"),
        ({"clusters": {"of": [0, 1], "links": [[0]]}}, r"links must be \[2 clusters\]\[2 clusters\]"),
        (
            {"heads": {"layers": 1, "heads": 2, "grids": [], "levels": "AA==", "peaks": [1.0, 1.0]}},
            "levels and peaks must hold 2 maps of 0 cells",
        ),
    ],
)
def test_details_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(**change)


def test_the_page_shows_them_and_hostile_texts_stay_text(tmp_path: Path) -> None:
    run = write_run(tmp_path, steps=12, samples=4)
    text = write_report(run).read_text(encoding="utf-8")
    assert RunFolder.read(run).groups[-1].problem == HOSTILE and HOSTILE not in text
    for title in ("Rewards by status", "Worst and best groups", "Connectivity density", "Layers and heads"):
        assert title in text, title
    assert text.count('<details class="clusters">') == text.count('<details class="heads">') == 4
    rows = re.search(r"<summary>Worst</summary>(.*?)</table>", text, re.DOTALL)[1]
    assert "0 of 8" in rows and "&lt;/script&gt;" in rows  # the hostile group is the worst there is

"""The run's report in parts: which rollouts it takes, and how numbers, curves, attention and pictures come to look."""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from report_run import summary

from atrl.report import figures, heatmaps, metrics
from atrl.report.cards import UNIT_TINT, make_cards, scale_top, tint
from atrl.report.charts import draw_charts
from atrl.report.pictures import MAX_SIDE, embed
from atrl.report.run_folder import Accuracy, Response, Sample, Summary
from atrl.report.selection import choose_samples, evenly_spaced, fair_shares
from atrl.report.text import printable


def sample(**changes) -> Sample:
    fields = dict(
        step=1, problem="p", question="<image>q", gold="1", response="ab", tokens=["a", "b"], weights=[1.5, 0.5],
        advantage=0.5, reward=1.0, parts={}, status="right", images=[],
    )  # fmt: skip
    return Sample.model_validate(fields | changes)


def accuracy(before, after, before_ci95=None, after_ci95=None, paired=None) -> Accuracy:
    fields = dict(before=before, after=after, before_ci95=before_ci95, after_ci95=after_ci95, samples=512)
    return Accuracy.model_validate(fields if paired is None else fields | {"paired": paired})


# --- Choice of rollouts


def test_few_samples_are_all_shown_in_order_of_their_steps():
    assert [s.step for s in choose_samples([sample(step=3), sample(step=1), sample(step=2)])] == [1, 2, 3]
    assert choose_samples([]) == []


def test_choice_mixes_early_and_late_right_and_not():
    # Steps 0 … 39, three right ones for each that is not.
    samples = [sample(step=i, status="wrong" if i % 4 == 0 else "right") for i in range(40)]
    chosen = choose_samples(samples)
    quarters = [
        sum((s.step >= 20) == late and (s.status == "right") == right for s in chosen)
        for late in (True, False)
        for right in (True, False)
    ]
    assert quarters == [3, 3, 2, 2]
    assert [s.step for s in chosen] == sorted(s.step for s in chosen)
    assert choose_samples(samples) == chosen


def test_choice_fills_up_where_a_kind_is_rare():
    samples = [sample(step=i, status="truncated" if i == 7 else "right") for i in range(30)]
    chosen = choose_samples(samples)
    assert len(chosen) == 10
    assert [s.step for s in chosen if s.status == "truncated"] == [7]


@pytest.mark.parametrize(
    ("sizes", "total", "expected"),
    [([9, 9, 9, 9], 10, [3, 3, 2, 2]), ([1, 9, 0, 9], 10, [1, 5, 0, 4]), ([1, 2], 10, [1, 2]), ([], 3, [])],
)
def test_fair_shares(sizes, total, expected):
    assert fair_shares(sizes, total) == expected


def test_evenly_spaced_takes_the_middles_of_equal_runs():
    # Two runs of four items, 0…3 and 4…7, whose middles are 2 and 6.
    assert evenly_spaced(range(8), 2) == [2, 6]
    assert evenly_spaced("abc", 3) == ["a", "b", "c"]
    assert evenly_spaced("abc", 0) == []


# --- Weight to colour


def test_tint_is_linear_below_and_above_weight_one():
    assert tint(0, 3) == 0
    assert tint(0.5, 3) == pytest.approx(UNIT_TINT / 2)
    assert tint(1, 3) == pytest.approx(UNIT_TINT)
    assert tint(2, 3) == pytest.approx((UNIT_TINT + 1) / 2)  # halfway from 1 to the top
    assert tint(3, 3) == pytest.approx(1)


@given(st.lists(st.floats(0, 50), min_size=2, max_size=20))
def test_tint_is_monotone_and_bounded(weights):
    top = scale_top(weights)
    tints = [tint(weight, top) for weight in sorted(weights)]
    assert tints == sorted(tints)
    assert tints[0] >= 0 and tints[-1] <= 1


def test_scale_reaches_the_largest_weight_in_halves():
    assert scale_top([2.31, 0.77]) == 2.5
    assert scale_top([1.0]) == scale_top([]) == 2  # uniform credit stays pale


# --- Figures


def test_phase_shares_name_the_rest():
    shares = figures.phase_shares({"total": 10.0, "rollout": 4.0, "update": 5.0, "credit": None, "sync": 0.0})
    assert [(p.name, p.seconds, p.share) for p in shares] == [
        ("rollout", 4, 0.4), ("update", 5, 0.5), ("other", 1, 0.1),
    ]  # fmt: skip


def test_phase_shares_of_overlapping_phases_add_up_to_one():
    shares = figures.phase_shares({"total": 5.0, "rollout": 6.0, "update": 2.0})
    assert [(p.name, p.share) for p in shares] == [("rollout", 0.75), ("update", 0.25)]
    assert figures.phase_shares({}) == figures.phase_shares({"total": 9.0}) == []


OF_THE_CHANGE = "the 95\u202f% interval of the change is"


@pytest.mark.parametrize(
    ("given_accuracy", "clear", "words"),
    [
        (accuracy(0.4, 0.8, (0.25, 0.48), (0.74, 0.88)), True, f"rose by 40.0 points; {OF_THE_CHANGE} +30.0 to +57.0."),
        (accuracy(0.8, 0.4, (0.74, 0.88), (0.25, 0.48)), True, f"fell by 40.0 points; {OF_THE_CHANGE} −57.0 to −30.0."),
        (
            accuracy(0.4, 0.6, (0.32, 0.52), (0.51, 0.66)),
            True,
            f"{OF_THE_CHANGE} +5.0 to +30.0.",
        ),  # though they overlap
        (accuracy(0.4, 0.5, (0.32, 0.52), (0.41, 0.56)), False, f"{OF_THE_CHANGE} −5.0 to +20.0, so this run alone"),
        (accuracy(0.4, 0.4, (0.34, 0.48), (0.34, 0.48)), False, f"did not move; {OF_THE_CHANGE} −10.0 to +10.0, so"),
        (accuracy(0.4, 0.8), False, "no intervals were recorded"),
        (accuracy(0.4, None), False, "not measured after training"),
        (accuracy(None, None), False, "Accuracy was not measured."),
    ],
)
def test_verdict(given_accuracy, clear, words):
    """In points, √(6² + 8²) = 10 and √(8² + 15²) = 17 to the sides, then √(9² + 12²) = 15 and 10, and 10 twice."""
    verdict = figures.verdict(given_accuracy)
    assert verdict.clear is clear
    assert verdict.tone == ("unclear" if not clear else "better" if verdict.change > 0 else "worse")
    assert words in verdict.sentence


@pytest.mark.parametrize(
    ("flips", "ci95", "clear", "words"),
    [
        ((64, 14, 1e-8), (0.06, 0.135), True, "is +6.0 to +13.5 (64 problems gained, 14 lost; McNemar’s p < 0.001)."),
        ((60, 10, 0.06), (0.06, 0.135), False, "+13.5 (60 problems gained, 10 lost; McNemar’s p = 0.06), so this run"),
        ((1, 0, 0.01), (-0.01, 0.2), False, "−1.0 to +20.0 (1 problem gained, 0 lost; McNemar’s p = 0.01), so this"),
        ((0, 0, 1.0), (0.0, 0.0), False, "Accuracy rose by 9.8 points, and no problem changed sides, so this run"),
    ],
)
def test_verdict_by_problem(flips, ci95, clear, words):
    """The interval and the test of the pairs decide together, whatever the two accuracies' own intervals are."""
    paired = dict(zip(("gained", "lost", "p"), flips, strict=True)) | {"problems": 512, "ci95": ci95}
    verdict = figures.verdict(accuracy(0.4, 0.498, (0.3, 0.5), (0.4, 0.6), paired))
    assert verdict.clear is clear and verdict.p == flips[2] and words in verdict.sentence
    assert figures.verdict(accuracy(0.4, 0.498, None, None, paired)).sentence == verdict.sentence


def test_an_interval_that_ends_at_0_settles_nothing():
    assert not figures.Verdict(0.1, (0.0, 0.2), "").clear and figures.Verdict(0.1, (0.01, 0.2), "").clear


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.42 s"), (42, "42.0 s"), (59.97, "1 min 00 s"), (147, "2 min 27 s"), (3599.7, "1 h 00 min"), (None, "–")],
)
def test_duration(seconds, text):
    assert figures.duration(seconds) == text


def test_numbers():
    assert [figures.number(value) for value in (0, 1.0, -0.12345, 12345.6, float("nan"), None)] == [
        "0", "1", "−0.123", "12,346", "nan", "–",
    ]  # fmt: skip
    assert [figures.number(value) for value in (999.4, 999.5, 999.7, -999.7, 1000.4)] == [
        "999", "1,000", "1,000", "−1,000", "1,000",
    ]  # fmt: skip
    assert figures.percent(0.4412) == "44.1\u202f%"
    assert [figures.memory(size) for size in (2_310_000_000, 52_000_000, None)] == ["2.31 GB", "52 MB", "–"]


def test_key_facts_hold_speed_and_step_time():
    facts = {fact.name: (fact.value, fact.detail) for fact in figures.key_facts(Summary.model_validate(summary()))}
    assert facts["Tokens generated"] == ("798,314", "11,705 tokens/s")  # 798314 / 68.2 = 11705.48
    assert facts["Wall clock"] == ("2 min 51 s", "1.43 s a step")
    assert facts["Steps"] == ("120", "15,360 rollouts")
    assert facts["Peak memory"] == ("2.31 GB", "host")


@pytest.mark.parametrize(("count", "said"), [(8, "8 clusters"), ("auto", "clusters by length"), (None, None)])
def test_key_facts_say_how_many_clusters(count, said):
    given = summary()
    given["credit"]["num_clusters"] = count
    facts = [fact.detail for fact in figures.key_facts(Summary.model_validate(given))]
    assert [detail for detail in facts if "cluster" in detail] == ([said] if said else [])


# --- Curves


def test_metrics_skip_empty_cells_and_count_what_is_not_finite(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,step,a,b\n0,2,0.5,\n0,1,0.25,\n0,2,,7\n0,3,nan,8\n")
    curves = metrics.read_metrics(file)
    assert curves == {"a": metrics.Curve([1, 2], [0.25, 0.5], 1), "b": metrics.Curve([2, 3], [7, 8])}


def test_metrics_name_the_place_of_a_bad_cell(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,a\n1,0.5\n2,many\n")
    with pytest.raises(ValueError, match=r"metrics\.csv line 3, column 'a': 'many' is not a number"):
        metrics.read_metrics(file)
    file.write_text("a\n1\n")
    with pytest.raises(ValueError, match="no column 'step'"):
        metrics.read_metrics(file)


def test_moving_mean_narrows_at_the_ends():
    assert metrics.moving_mean([1, 2, 6], 3) == pytest.approx([1.5, 3, 4])
    assert metrics.moving_mean([1, 2, 6], 1) == [1, 2, 6]
    assert metrics.moving_mean([1, 3], 9) == pytest.approx([2, 2])
    assert metrics.moving_mean([], 3) == []


def test_aligned_puts_curves_on_common_steps_and_averages_long_runs():
    curves = [metrics.Curve([1, 2, 3, 4], [1, 3, 5, 7]), metrics.Curve([2, 4], [2, 4])]
    assert metrics.aligned(curves, 10) == ([1, 2, 3, 4], [[1, 3, 5, 7], [0, 2, 0, 4]])
    assert metrics.aligned(curves, 2) == ([1.5, 3.5], [[2, 6], [1, 2]])


def test_charts_leave_out_what_was_not_logged_and_share_no_ids():
    curves = {
        "reward/mean": metrics.Curve([1, 2], [0.1, 0.2], 1), "loss/gradient_norm": metrics.Curve([1, 2], [1, 2]),
        "time/rollout": metrics.Curve([5], [1.0]), "something/else": metrics.Curve([1], [1]),
    }  # fmt: skip
    charts, absent = draw_charts(curves, Summary.model_validate(summary()))
    assert [chart.panel.name for chart in charts] == ["reward", "accuracy", "gradient", "phases"]
    assert "Entropy" in absent and "Reward" not in absent
    assert "not finite and left out: 1" in charts[0].note
    drawings = "".join(chart.svg for chart in charts)
    ids = re.findall(r'\bid="([^"]+)"', drawings)
    assert len(ids) == len(set(ids)) > 0
    assert {reference for reference in re.findall(r'(?:href="|url\()#([^")]+)', drawings)} == set(ids)
    assert not re.search(r"<metadata|<style|font-family|#0[ac]0[bd]", drawings)
    assert "var(--s1)" in drawings


def test_accuracy_chart_shows_both_ends_without_any_logged_curve():
    charts, _ = draw_charts({}, Summary.model_validate(summary()))
    ends = [(entry.label, entry.last) for entry in charts[0].legend]
    assert ends == [("before", "44.1\u202f%"), ("after", "86.9\u202f%")]


def test_accuracy_chart_tells_its_two_curves_apart():
    curves = {"eval/accuracy": metrics.Curve([1, 2], [0.4, 0.5]), "eval/greedy_accuracy": metrics.Curve([1], [0.6])}
    charts, _ = draw_charts(curves, Summary.model_validate(summary()))
    assert [(entry.label, entry.last) for entry in charts[0].legend] == [
        *(("sampled", "50.0\u202f%"), ("greedy", "60.0\u202f%"), ("before", "44.1\u202f%"), ("after", "86.9\u202f%")),
    ]


def test_the_three_accuracies_of_grounding_share_a_chart():
    steps = [0, 19, 39]
    values = {"true": [0.4, 0.5, 0.7], "blank": [0.1, 0.1, 0.2], "swapped": [0.1, 0.1, 0.0]}
    curves = {f"eval/picture_{name}": metrics.Curve(steps, found) for name, found in values.items()}
    charts, absent = draw_charts(curves, Summary.model_validate(summary()))
    (chart,) = [chart for chart in charts if chart.panel.name == "pictures"]
    assert [(entry.label, entry.last) for entry in chart.legend] == [
        *(("own pictures", "70.0\u202f%"), ("blanked", "20.0\u202f%"), ("another problem’s", "0.0\u202f%")),
    ]
    assert len({entry.colour for entry in chart.legend}) == 3
    without, absent = draw_charts({}, Summary.model_validate(summary()))
    assert "pictures" not in {chart.panel.name for chart in without} and "Reading the pictures" not in absent


# --- Heat maps


def test_pool_keeps_the_largest():
    attention = np.arange(12.0).reshape(1, 3, 4)
    pooled = heatmaps.pool(attention, 2)
    # Rows 0 | 1+2 and columns 0+1 | 2+3 of [[0 1 2 3], [4 5 6 7], [8 9 10 11]].
    assert pooled.tolist() == [[[1, 3], [9, 11]]]
    assert heatmaps.pool(attention, 4) is attention


@pytest.mark.parametrize(("side", "cells"), [(32, 30), (8, 6), (6, 6), (5, 5)])
def test_pool_keeps_frames_apart(side, cells):
    """Six frames of 18 columns, the last column of the third alone seen: cells that it lights are the third's."""
    strip = np.zeros((1, 4, 6 * 18))
    strip[0, :, 3 * 18 - 1] = 1
    pooled = heatmaps.pool(strip, side, (1, 6))
    assert pooled.shape == (1, 4, cells)
    if side >= 6:
        assert np.flatnonzero(pooled[0].max(axis=0)).tolist() == [3 * cells // 6 - 1]


def test_heat_maps_of_a_strip_keep_its_frames_apart():
    """As an inspection has them, in full: six frames of 18 columns are 30 cells, of a picture as wide 32."""
    attention = [[[1.0] * (6 * 18)]]
    sample = Response(
        problem="p", question="<video><image>", gold="", tokens=["a"], weights=[1], images=["v.png", "i.png"],
        timestamps=[[0, 1, 2, 3, 4, 5], None], attention=[attention, attention],
    )  # fmt: skip
    assert heatmaps.heat_maps(sample).grids == [(1, 30), (1, 32)]


def test_overview_is_the_mean_over_anchors_by_weight():
    mass = np.array([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    assert heatmaps.overview(mass, [3, 1, 2], [True, True, False]).tolist() == [0.75, 0.25]
    assert heatmaps.overview(mass, [1, 1, 0], None).tolist() == [0.5, 0.5]
    assert heatmaps.overview(mass, [0, 0, 3], [True, True, False]).tolist() == [0.5, 0.5]  # anchors without credit


def test_heat_maps_are_relative_to_their_own_largest_cell():
    nan = float("nan")
    maps = heatmaps.heat_maps(
        sample(
            tokens=["a", "b", "c"], weights=[1, 1, 1], images=["x", "y"],
            attention=[[[[0.1, 0.2]], [[0.0, 0.0]], [[nan, 1.0]]], [[[0.4]], [[0.0]], [[1.0]]]],
        )
    )  # fmt: skip
    assert maps.grids == [(1, 2), (1, 1)]
    # 255 · 0.25 = 63.75, 255 · 0.5 = 127.5; the third token's attention is not finite.
    assert list(base64.b64decode(maps.levels)) == [64, 128, 255, 0, 0, 0, 0, 0, 0]
    assert maps.peaks == [0.4, 0, None]
    assert (maps.cells(0), maps.cells(1)) == ([64, 128], [255])


def test_heat_maps_of_a_long_response_are_kept_for_its_heaviest_tokens():
    attention = [[[[float(i), 1.0]] for i in range(5)]]
    long = sample(tokens=list("abcde"), weights=[1, 0, 3, 0.5, 0.5], images=["x"], attention=attention)
    maps = heatmaps.heat_maps(long, max_values=6)
    assert maps.kept == [0, 2, 3]
    assert len(base64.b64decode(maps.levels)) == 6
    assert heatmaps.heat_maps(sample()) is None


# --- Pictures and text


def test_pictures_are_bounded_in_pixels(tmp_path):
    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "wide.png")
    picture = embed(tmp_path, "wide.png", problem="p")
    assert (picture.width, picture.height) == (MAX_SIDE, MAX_SIDE // 2)
    assert picture.uri.startswith("data:image/png;base64,")


def test_pictures_stay_inside_the_run_folder(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (run_dir / "broken.png").write_bytes(b"<svg onload=alert(1)>")
    with pytest.raises(ValueError, match=r"'\.\./secret\.png' lies outside the run's folder"):
        embed(run_dir, "../secret.png", problem="p")
    assert embed(run_dir, "broken.png", problem="p").uri is None
    assert embed(run_dir, "none.png", problem="p").uri is None


def test_printable_shows_controls_and_survives_utf8():
    assert printable("a\x00b\x1b\r\n\t\x7f") == "a␀b␛␍\n\t␡"
    assert printable("\ud83d") == "\ufffd"


def test_tokens_that_show_nothing_get_a_sign():
    marked = sample(tokens=["", "\n"], anchors=[True, False], reading=[True, False])
    card = make_cards([marked], Path())[0]
    assert [(token.text, token.marks) for token in card.tokens] == [("∅", "a r"), ("↵\n", "")]

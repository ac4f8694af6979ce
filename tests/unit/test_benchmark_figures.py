"""What verdicts sum up to: worked out by hand, the same over ranks, and drawn again by the bootstrap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from atrl.benchmarks.base import Item, Scored, as_text
from atrl.benchmarks.dynamath import DynaMath
from atrl.benchmarks.figures import MeanOf, Ratio, Units, bootstrap, point_values
from atrl.benchmarks.hallusionbench import HallusionBench
from atrl.benchmarks.mathverse import MathVerse
from atrl.benchmarks.metric import BenchmarkMetric
from atrl.benchmarks.mmvet import MMVet
from atrl.benchmarks.vsibench import CHOICES, DIRECTIONS, NUMERIC, VsiBench
from atrl.benchmarks.wemath import WeMath
from tests.unit.ranks import run_ranks


def figures(rule, items, scores, extras=None) -> dict[str, float]:
    metric = BenchmarkMetric(rule, items)
    extras = extras or [{}] * len(items)
    metric.update((item.id, Scored("", "", s, e)) for item, s, e in zip(items, scores, extras, strict=True))
    return metric.compute()


def wemath_items(composites: list[tuple[str, int]]) -> list[Item]:
    rule = WeMath()
    rows = [
        {"id": name, "key": f"{steps}steps_{step}", "answer": "A"}
        for name, steps in composites
        for step in [*range(1, steps + 1), "multi"]
    ]
    return [Item(rule.item_id(row), "A", row) for row in rows]


def test_wemath_by_hand():
    """Six composites: IK, IG, CM, RM (a step right), RM (none right), and one of three steps that is CM loosely.

    The IDs say another number of steps than the keys; two composites even share one.
    """
    items = wemath_items([("3steps_1", 2), ("a", 2), ("b", 2), ("c", 2), ("d", 2), ("3steps_1", 3)])
    assert items[0].id == "3steps_1/2steps_1"
    scores = [*(1, 0, 0), *(1, 1, 0), *(1, 1, 1), *(0, 1, 1), *(0, 0, 1), *(0, 1, 0, 1)]
    ours = figures(WeMath(), items, scores)
    assert ours["IK"] == pytest.approx(1 / 6)
    assert ours["IG"] == pytest.approx(1 / 6)
    assert ours["CM_strict"] == pytest.approx(1 / 6)
    assert ours["CM_loose"] == pytest.approx(3 / 6)  # b, c and the last have a right step
    assert ours["RM_strict"] == pytest.approx(3 / 4)  # RM / (CM + RM)
    assert ours["RM_loose"] == pytest.approx(1 / 4)
    assert ours["score_strict"] == pytest.approx((1 + 0.5) / 6)
    assert ours["score_loose"] == pytest.approx((3 + 0.5) / 6)
    assert ours["one_step"] == pytest.approx((1 + 2 + 2 + 1 + 0 + 1) / 13)
    assert ours["2_steps"] == pytest.approx(3 / 5)
    assert ours["3_steps"] == pytest.approx(1.0)


def test_wemath_kinds_are_a_partition():
    """Every pattern of a composite of two steps is exactly one of the four kinds, strictly and loosely."""
    patterns = list(itertools.product([0, 1], repeat=3))
    items = wemath_items([(f"c{number}", 2) for number in range(len(patterns))])
    ours = figures(WeMath(), items, [value for pattern in patterns for value in pattern])
    for how in ("strict", "loose"):
        right = 1 - ours["IK"] - ours["IG"]
        assert ours[f"CM_{how}"] == pytest.approx(right * (1 - ours[f"RM_{how}"]))
        # the authors write the score as what is left of 1
        rote = right - ours[f"CM_{how}"]
        assert ours[f"score_{how}"] == pytest.approx(1 - 0.5 * ours["IG"] - rote - ours["IK"])


def test_wemath_keys_that_are_none_do_not_cost_what_was_scored():
    """A step that the composite can't have makes it not whole; other keys are refused as the rows are read."""
    rule = WeMath()
    rows = [{"id": 1.0, "key": f"2steps_{step}", "answer": "A"} for step in (1, 3, "multi")]
    items = [Item(rule.item_id(row), "A", row) for row in rows]
    assert items[0].id == "1/2steps_1"
    ours = figures(rule, [*items, *wemath_items([("a", 2)])], [0, 0, 0, 1, 1, 1])
    assert (ours["score_strict"], ours["2_steps"]) == (1.0, 0.5)
    with pytest.raises(ValueError, match="problem '1/2step_1': key '2step_1' is none of We-Math's"):
        rule.item_id({"id": 1, "key": "2step_1"})


def test_wemath_leaves_out_composites_that_are_not_whole():
    items = wemath_items([("a", 2), ("b", 2)])[:-1]
    ours = figures(WeMath(), items, [1, 1, 1, 1, 1])
    assert (ours["score_strict"], ours["one_step"]) == (1.0, 1.0)
    ours = figures(WeMath(), wemath_items([("a", 2), ("b", 2)])[1:], [0, 0, 1, 1, 1])  # a step is missing
    assert (ours["score_strict"], ours["IK"], ours["2_steps"]) == (1.0, 0.0, 0.5)
    with pytest.raises(ValueError, match="key 'two' is none of We-Math's"):
        WeMath().unit(Item("x", "A", {"id": "x", "key": "two"}))


def test_dynamath_by_hand():
    rule = DynaMath()
    rows = [{"id": f"Q{q}", "variant": v, "subject": "s" if q < 3 else "t"} for q in (1, 2, 3) for v in (1, 2)]
    items = [Item(rule.item_id(row), "x", row) for row in rows]
    assert items[1].id == "Q1/2"
    ours = figures(rule, items, [1, 1, 1, 0, 0, 0])
    assert ours["average"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert ours["worst_case"] == pytest.approx(1 / 3)
    assert ours["robustness"] == pytest.approx((1 / 3) / 0.5)
    assert ours["worst_case/subject/s"] == pytest.approx(1 / 2)
    assert ours["average/subject/t"] == pytest.approx(0.0)


def test_vsibench_weighs_tasks_and_not_questions():
    kinds = [*NUMERIC, *CHOICES, *DIRECTIONS]
    items = [
        Item(f"{kind}/{n}", "B", {"question_type": kind}) for kind in kinds for n in range(3 if "easy" in kind else 1)
    ]
    score = {"object_counting": 0.6, "route_planning": 1.0, "object_rel_direction_easy": 1.0}
    ours = figures(VsiBench(), items, [score.get(item.row["question_type"], 0.0) for item in items])
    assert ours["object_rel_direction"] == pytest.approx(1 / 3)  # three levels of one weight
    assert ours["overall"] == pytest.approx((0.6 + 1.0 + 1 / 3) / 8)
    assert ours["tolerant/overall"] == 0.0


def test_vsibench_averages_the_tasks_that_are_there():
    items = [Item(kind, "B", {"question_type": kind}) for kind in ("route_planning", "object_counting")]
    assert figures(VsiBench(), items, [1.0, 0.5])["overall"] == pytest.approx(0.75)


def test_hallusionbench_by_hand():
    """One set with two questions on two figures, and a supplement set whose figure 0 is no figure."""
    rule = HallusionBench()
    keys = [("VD", "0", "0"), ("VD", "0", "1"), ("VD", "1", "0"), ("VD", "1", "1"), ("VS", "0", "0"), ("VS", "1", "0")]
    items = []
    for category, figure, question in keys:
        row = {"category": category, "subcategory": "s", "set_id": "7", "figure_id": figure, "question_id": question}
        items.append(Item(rule.item_id(row), "yes", row | {"visual_input": "2" if figure == "1" else "1"}))
    ours = figures(rule, items, [1, 1, 1, 0, 0, 1])
    assert ours["aAcc"] == pytest.approx(4 / 6)
    assert ours["fAcc"] == pytest.approx(2 / 3)  # VD 0 and VS 1; VD 1 is not, VS 0 is no figure
    assert ours["qAcc"] == pytest.approx(1 / 3)  # VD question 0; VD question 1 and the VS question are not
    assert (ours["easy"], ours["hard"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_mmvet_by_hand():
    items = [Item("1", "x", {"capability": ["ocr", "math"]}), Item("2", "x", {"capability": ["ocr"]})]
    ours = figures(MMVet(), items, [0.5, 1.0])
    assert ours == pytest.approx(
        {"total": 0.75, "capability/math": 0.5, "capability/ocr": 0.75, "set/math+ocr": 0.5, "set/ocr": 1.0}
    )


def test_mathverse_leaves_the_sixth_version_out_of_its_headline():
    rows = [("Text Dominant", "Plane"), ("Vision Only", "Plane"), ("Text Only", "Solid")]
    items = [Item(str(n), "x", {"version": v, "metadata": {"subject": s}}) for n, (v, s) in enumerate(rows)]
    assert figures(MathVerse(), items, [1, 0, 1]) == pytest.approx(
        {
            **{"accuracy": 0.5, "version/Text Dominant": 1.0, "version/Vision Only": 0.0, "version/Text Only": 1.0},
            **{"subject/Plane": 0.5, "subject/Solid": 1.0},
        }
    )


def test_several_answers_to_an_item_are_averaged():
    items = [Item("Q1/1", "x", {"id": "Q1"}), Item("Q2/1", "x", {"id": "Q2"})]
    metric = BenchmarkMetric(DynaMath(), items)
    metric.update([("Q1/1", Scored("", "", 1.0)), ("Q1/1", Scored("", "", 0.0)), ("Q2/1", Scored("", "", 1.0))])
    assert metric.compute()["average"] == pytest.approx(0.75)
    assert metric.compute()["worst_case"] == pytest.approx(0.75)
    metric.reset()
    with pytest.raises(ValueError, match="no answer to dynamath was judged"):
        metric.compute()


def _on_a_rank(world: int) -> dict[str, float]:
    import torch.distributed as dist

    items = wemath_items([(f"c{number}", 2 + number % 2) for number in range(5)])
    metric = BenchmarkMetric(WeMath(), items)
    mine = range(dist.get_rank(), len(items), world)  # a composite's rows fall to different ranks
    metric.update((items[place].id, Scored("", "", float(place % 3 != 0))) for place in mine)
    return metric.compute()


def test_ranks_sum_up_to_the_whole():
    items = wemath_items([(f"c{number}", 2 + number % 2) for number in range(5)])
    alone = figures(WeMath(), items, [float(place % 3 != 0) for place in range(len(items))])
    assert 0 < alone["score_loose"] < 1
    for ours in run_ranks(_on_a_rank, 2):
        assert ours == pytest.approx(alone, nan_ok=True)


def test_ratios_and_means():
    units = Units(["a", "a", "b"])
    values = np.array([1.0, 0.0, 1.0])
    ratio = units.mean("m", values)
    assert ratio.numerator.tolist() == [1.0, 1.0]
    assert ratio.denominator.tolist() == [2.0, 1.0]
    none = units.mean("none", values, np.zeros(3))
    both = point_values([ratio, none, MeanOf("both", ("m", "none")), MeanOf("nothing", ("none",))], units.count)
    assert both["m"] == both["both"] == pytest.approx(2 / 3)
    assert np.isnan(both["none"])
    assert np.isnan(both["nothing"])
    assert [f.name for f in units.means_by("k/", values, ["y", None, "x"])] == ["k/x", "k/y"]


def test_the_bootstrap_draws_units_whole():
    """Two units of opposite verdicts: a draw of both gives 0, 1/2 or 1, whatever the number of items in each."""
    units = Units(["a"] * 10 + ["b"] * 10)
    figure = units.mean("m", np.repeat([0.0, 1.0], 10))
    assert bootstrap([figure], 2, draws=400)["m"] == (0.0, 1.0)


def test_the_bootstrap_agrees_with_the_normal_interval():
    values = (np.arange(1000) % 4 == 0).astype(float)
    figure = Ratio("m", values, np.ones(1000))
    low, high = bootstrap([figure], 1000, draws=4000, seed=3)["m"]
    half = 1.96 * np.sqrt(0.25 * 0.75 / 1000)
    assert low == pytest.approx(0.25 - half, abs=0.003)
    assert high == pytest.approx(0.25 + half, abs=0.003)
    assert bootstrap([figure], 1000, draws=50) == bootstrap([figure], 1000, draws=50)


def test_units_that_are_all_alike_have_an_interval():
    """Ten wrong problems, and ten right of which five are of a kind: Wilson's [0, z²/(n + z²)] and its mirror image.

    A count that is no share keeps what every draw has.
    """
    units = Units([str(number) for number in range(10)])
    wrong, right = units.mean("wrong", np.zeros(10)), units.mean("right", np.ones(10), np.arange(10) < 5)
    tokens, none = units.mean("tokens", np.full(10, 7.0)), units.mean("none", np.zeros(10), np.zeros(10))
    found = bootstrap([wrong, right, tokens, none, MeanOf("both", ("wrong", "right", "none"))], 10, draws=100)
    z2 = 3.8414588
    assert found["wrong"] == pytest.approx((0, z2 / (10 + z2)), abs=1e-6)
    assert found["right"] == pytest.approx((5 / (5 + z2), 1), abs=1e-6)
    assert found["tokens"] == (7, 7) and np.isnan(found["none"]).all()
    assert found["both"] == pytest.approx((5 / (5 + z2) / 2, (z2 / (10 + z2) + 1) / 2), abs=1e-6)


def test_whole_floats_are_written_as_integers():
    assert [as_text(value) for value in (3.0, 3.5, "3.0", 7)] == ["3", "3.5", "3.0", "7"]

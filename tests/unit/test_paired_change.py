"""Two scores of the same problems, problem by problem, from figures worked out by hand."""

from __future__ import annotations

import pytest

from atrl.evaluation.paired import paired_change
from atrl.evaluation.score import Score
from tests.unit.scripted import RIGHT, WRONG
from tests.unit.test_score import scored


def of(*right: bool) -> Score:
    return scored({f"p{number}": [RIGHT if one else WRONG] for number, one in enumerate(right)})


def test_gained_and_lost_by_hand():
    """Four gained and one lost of eight: 2·(1 + 5)/2⁵ = 0.375."""
    found = paired_change(of(*[False] * 4, True, True, True, False), of(*[True] * 4, False, True, True, False))
    assert (found["problems"], found["gained"], found["lost"], found["p"]) == (8, 4, 1, 0.375)
    low, high = found["ci95"]
    assert low <= 3 / 8 <= high and (low * 8) % 1 == (high * 8) % 1 == 0  # of eight problems a mean is so many eighths


def test_where_no_problem_changes_there_is_no_flip():
    """Wilson's upper end of 0 of 2 is z²/(2 + z²) = 3.8415/5.8415: so many further problems might change."""
    found = paired_change(of(True, False), of(True, False))
    assert found.pop("ci95") == pytest.approx([-0.65762, 0.65762], abs=1e-5)
    assert found == {"problems": 2, "gained": 0, "lost": 0, "p": 1.0}


def test_of_several_samples_the_share_counts():
    before = scored({"p0": [RIGHT, WRONG], "p1": [RIGHT, WRONG], "p2": [WRONG, RIGHT]})
    after = scored({"p0": [RIGHT, RIGHT], "p1": [WRONG, WRONG], "p2": [RIGHT, WRONG]})
    found = paired_change(before, after)
    assert (found["gained"], found["lost"]) == (1, 1)


@pytest.mark.parametrize("lost", ["before", "after"])
def test_a_score_of_which_the_figures_alone_are_known_has_no_pairs(lost):
    scores = {"before": of(True, False), "after": of(True, True)}
    scores[lost] = Score.from_short(scores[lost].in_short())
    assert paired_change(**scores) is None


def test_a_score_that_a_checkpoint_kept_is_paired_alike():
    before, after = of(True, False, False), of(True, True, False)
    kept = Score.from_short(before.in_short() | {"right": before.right})
    assert paired_change(kept, after) == paired_change(before, after) is not None


def test_other_problems_have_none_either():
    assert paired_change(of(True), of(True, False)) is None

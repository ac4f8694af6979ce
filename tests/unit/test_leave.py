"""What a run's summary says credit cost."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from atrl.leave import accuracies, credit_overhead
from atrl.report.run_folder import Accuracy
from tests.unit.scripted import RIGHT, WRONG
from tests.unit.test_score import scored

SECONDS = {"rollout": 4.0, "reward": 1.0, "score": 2.0, "credit": 0.5, "update": 3.0, "sync": 0.0}


@pytest.mark.parametrize(
    ("trained", "overhead"),
    [
        (SimpleNamespace(credit=object()), 0.5 / 10),
        (SimpleNamespace(credit=None), None),
        (None, None),
    ],
)
def test_credit_overhead_by_hand(trained, overhead):
    assert credit_overhead(SECONDS, trained) == (overhead and pytest.approx(overhead))


def test_what_became_of_each_problem_is_in_the_summary_as_the_report_reads_it():
    """Two gained and none lost of three: 2·1/2² = 0.5."""
    before = scored({"p0": [WRONG], "p1": [WRONG], "p2": [RIGHT]})
    after = scored({"p0": [RIGHT], "p1": [RIGHT], "p2": [RIGHT]})
    found = Accuracy.model_validate(accuracies(before, after))
    assert (found.paired.problems, found.paired.gained, found.paired.lost, found.paired.p) == (3, 2, 0, 0.5)
    assert accuracies(None, after)["paired"] is None and accuracies(None, None)["paired"] is None

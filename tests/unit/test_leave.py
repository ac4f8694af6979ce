"""What a run's summary says credit cost."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from atrl.leave import credit_overhead

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

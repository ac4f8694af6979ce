"""What a run's summary says credit cost."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from atrl.leave import credit_overhead

SECONDS = {"rollout": 4.0, "reward": 1.0, "score": 2.0, "credit": 0.5, "update": 3.0, "sync": 0.0}


def run(scope: str, updates: int = 1, reference: object = None) -> SimpleNamespace:
    objective = SimpleNamespace(updates_per_batch=updates)
    module = SimpleNamespace(objective=objective, reference=reference)
    return SimpleNamespace(module=module, credit=SimpleNamespace(scheme=SimpleNamespace(scope=scope)))


@pytest.mark.parametrize(
    ("trained", "overhead"),
    [
        (run("response"), 0.5 / 10),
        (run("batch"), 2.5 / 8),  # the scoring pass is there for credit alone
        (run("batch", updates=2), 0.5 / 10),  # old log-probs need it anyway
        (run("batch", reference=object()), 0.5 / 10),
        (SimpleNamespace(credit=None), None),
        (None, None),
    ],
)
def test_credit_overhead_by_hand(trained, overhead):
    assert credit_overhead(SECONDS, trained) == (overhead and pytest.approx(overhead))

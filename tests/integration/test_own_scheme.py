"""Schemes of a user's own that break a promise, in real runs."""

from __future__ import annotations

import math

import pytest

from atrl.alarms import NonFiniteStop
from atrl.credit.base import CreditScheme, normalise
from atrl.types import CreditOutput


class Scaled(CreditScheme):
    """Triples every weight."""

    name = "scaled"

    def assign(self, batch, evidence):
        """As `CreditScheme.assign`."""
        return CreditOutput(3 * normalise(evidence.entropy, batch.response_mask))


class ScaledInBatch(Scaled):
    """The same, once the whole batch is scored."""

    scope = "batch"


class Broken(CreditScheme):
    """Divides by nothing."""

    def assign(self, batch, evidence):
        """As `CreditScheme.assign`."""
        return CreditOutput(normalise(evidence.entropy * math.nan, batch.response_mask))


def nothing() -> None:
    """Makes no scheme."""


def options(name: str) -> list[str]:
    target = f"{__name__}.{name}"
    return ["rollout=transformers", "trainer.evaluate_samples=0", "credit=uniform", f"credit._target_={target}"]


@pytest.mark.parametrize("name", ["Scaled", "ScaledInBatch"])
def test_weights_that_would_triple_the_rate_stop_the_first_step(train, name: str) -> None:
    with pytest.raises(ValueError, match="credit=scaled gave weights that average 3 over a response, not 1"):
        train(*options(name))


def test_weights_that_are_no_numbers_stop_the_run_and_are_named(train) -> None:
    with pytest.raises(NonFiniteStop, match="step 1: alarm non_finite: weights that credit gave are not finite"):
        train(*options("Broken"))


def test_a_function_that_makes_no_scheme_is_refused_before_a_model_loads(train) -> None:
    line = r"credit\._target_: .*nothing made a NoneType, which is no CreditScheme: it has no "
    with pytest.raises(ValueError, match=line):
        train(*options("nothing"))

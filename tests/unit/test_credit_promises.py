"""What a scheme returns is looked at before it reaches the loss."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from credit_evidence import ROWS, batch_of, evidence_of

from atrl.credit.base import CreditScheme
from atrl.credit.bound import BoundCredit, PictureScale
from atrl.credit.promises import checked
from atrl.types import CreditOutput

MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
GOOD = torch.tensor([[0.5, 0.5, 2.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])


class Mine(CreditScheme):
    """One that forgot its name."""

    def assign(self, batch, evidence):
        raise AssertionError


class OverTheBatch(Mine):
    """Its weights average 1 over the batch."""

    normalised_over = "batch"


def at(row: int, column: int, value: float) -> torch.Tensor:
    changed = GOOD.clone()
    changed[row, column] = value
    return changed


def test_what_is_as_promised_passes_untouched():
    output = CreditOutput(GOOD, anchors=MASK, density=GOOD, trajectory_scale=torch.tensor([2.0, -1.0, 0.0]))
    assert checked(output, MASK, Mine()) is output


def test_a_scheme_without_a_name_goes_by_its_class():
    assert Mine().name == Mine.name == "Mine" and OverTheBatch().name == "OverTheBatch"


FAULTS = {
    "negative": (at(0, 0, -0.5), "credit=Mine gave a token the weight -0.5: return CreditOutput"),
    "on padding": (at(1, 2, 0.25), "gave padding the weight 0.25"),
    "not scaled": (3 * GOOD, "gave weights that average 3 over a response, not 1"),
    "one response not scaled": (at(1, 1, 1.0), "gave weights that average 0.5 over a response, not 1"),
    "too few columns": (GOOD[:, :2], r"gave weights of shape \[3, 2\], and not \[3, 3\]"),
    "one row": (GOOD[0], r"gave weights of shape \[3\], and not \[3, 3\]"),
    "in double precision": (GOOD.double(), "gave weights of type torch.float64, and not torch.float32"),
    "booleans": (MASK, "gave weights of type torch.bool"),
    "a list": (GOOD.tolist(), "gave weights that are a list: make them a tensor"),
    "with a gradient": (GOOD.clone().requires_grad_(), "weights that carry a gradient, .*: put @torch.no_grad"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_weights_that_break_a_promise_are_refused(case):
    weights, line = FAULTS[case]
    with pytest.raises(ValueError, match=line) as caught:
        checked(CreditOutput(weights), MASK, Mine())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("anchors", GOOD, "anchors of type torch.float32, and not torch.bool"),
        ("density", GOOD[:2], r"density of shape \[2, 3\], and not \[3, 3\]"),
        ("trajectory_scale", GOOD, r"trajectory_scale of shape \[3, 3\], and not \[3\]"),
    ],
)
def test_so_are_other_fields(field, value, line):
    with pytest.raises(ValueError, match=line):
        checked(replace(CreditOutput(GOOD), **{field: value}), MASK, Mine())


@pytest.mark.parametrize(("returned", "name"), [(None, "NoneType"), (GOOD, "Tensor")])
def test_so_is_what_is_no_output(returned, name):
    with pytest.raises(ValueError, match=f"credit=Mine returned {name}, no CreditOutput: return CreditOutput"):
        checked(returned, MASK, Mine())


def test_over_the_batch_a_response_may_go_without():
    """Five tokens over a sum of 5, in one response; 6 are too many."""
    weights = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    checked(CreditOutput(weights), MASK, OverTheBatch())
    weights[1, 0] = 1.0
    with pytest.raises(ValueError, match=r"average 1\.2 over the batch"):
        checked(CreditOutput(weights), MASK, OverTheBatch())


class Comparing(Mine):
    """It sees the whole batch, and forgot to scale its weights."""

    scope = "batch"

    def assign(self, batch, evidence):
        return CreditOutput(2 * batch.response_mask.float())


def test_what_compares_rollouts_is_looked_at_too():
    bound = BoundCredit(Comparing(), None, PictureScale((), ()), None)
    batch, evidence = batch_of(ROWS), evidence_of(Comparing(), ROWS)
    with pytest.raises(ValueError, match="credit=Comparing gave weights that average 2 over a response, not 1"):
        bound.assign(batch, [evidence], [bound.begin(batch, evidence)])


def test_rounding_is_no_fault():
    """Weights whose mean is off by what float32 sums may be, and by what they may not."""
    mask = torch.ones(1, 4096, dtype=torch.bool)
    rounded, wrong = (CreditOutput(torch.full((1, 4096), 1 + off)) for off in (1e-4, 2e-3))
    assert rounded.weights.mean() != 1 and checked(rounded, mask, Mine()) is rounded
    with pytest.raises(ValueError, match=r"average 1\.002 over a response"):
        checked(wrong, mask, Mine())


def test_weights_that_are_no_numbers_go_on_to_the_loss():
    """They may be the policy's, and then the run must stop on every rank."""
    output = CreditOutput(at(0, 0, math.nan))
    assert checked(output, MASK, Mine()) is output

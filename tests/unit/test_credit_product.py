"""Schemes multiplied."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from credit_evidence import ROWS, batch_of, evidence_of

from atrl.credit.anchor_only import AnchorOnlyCredit
from atrl.credit.atrl import AtrlCredit
from atrl.credit.base import CreditScheme, PictureMask, normalise
from atrl.credit.entropy import EntropyCredit
from atrl.credit.hidden_cosine import HiddenCosineCredit
from atrl.credit.papo import PapoCredit
from atrl.credit.product import ProductCredit
from atrl.credit.random import RandomCredit
from atrl.credit.token_level import TokenLevelCredit
from atrl.credit.uniform import UniformCredit
from atrl.credit.vppo import VppoCredit
from atrl.types import CreditOutput, Evidence, MaskedView


@dataclass(frozen=True, kw_only=True)
class Fixed(CreditScheme):
    """Hands out what it was given."""

    weights: tuple[tuple[float, ...], ...]
    scale: tuple[float, ...] | None = None
    whole: bool = False

    name = "fixed"

    @property
    def normalised_over(self):
        return "batch" if self.whole else "response"

    def assign(self, batch, evidence):
        weights = torch.tensor(self.weights)
        scale = None if self.scale is None else torch.tensor(self.scale)
        return CreditOutput(weights, trajectory_scale=scale)


HALVES = Fixed(weights=((0.5, 1.5), (1.0, 1.0)), scale=(2.0, 0.5))
BATCH = batch_of([(2, 1), (2, 1)])


def test_weights_multiply_and_are_scaled_again():
    """(0.25, 2.25) over their mean 1.25; (1, 1)."""
    output = ProductCredit(schemes=[HALVES, HALVES]).assign(BATCH, None)
    torch.testing.assert_close(output.weights, torch.tensor([[0.2, 1.8], [1.0, 1.0]]))
    assert output.trajectory_scale.tolist() == [4.0, 0.25]
    assert ProductCredit(schemes=[HALVES, UniformCredit()]).assign(BATCH, None).trajectory_scale.tolist() == [2, 0.5]
    assert ProductCredit(schemes=[UniformCredit()]).assign(BATCH, None).trajectory_scale is None


def test_a_response_that_one_scheme_leaves_out_of_the_batch_stays_out():
    """(1, 3) and nothing: four tokens' credit over a sum of 4."""
    whole = Fixed(weights=((2.0, 2.0), (0.0, 0.0)), whole=True)
    output = ProductCredit(schemes=[HALVES, whole]).assign(BATCH, None)
    assert output.weights.tolist() == [[1, 3], [0, 0]]


def test_hard_schemes_that_agree_on_nothing_leave_the_response_even():
    hard = [Fixed(weights=((2.0, 0.0), (1.0, 1.0))), Fixed(weights=((0.0, 2.0), (2.0, 0.0)))]
    assert ProductCredit(schemes=hard).assign(BATCH, None).weights.tolist() == [[1, 1], [2, 0]]


def test_real_schemes_multiply():
    parts = [AtrlCredit(), EntropyCredit(ratio=0.5), RandomCredit()]
    scheme = ProductCredit(schemes=parts)
    batch, evidence = batch_of(ROWS), evidence_of(scheme, ROWS)
    outputs = [part.assign(batch, evidence) for part in parts]
    output = scheme.assign(batch, evidence)
    expected = normalise(outputs[0].weights * outputs[1].weights * outputs[2].weights, batch.response_mask)
    torch.testing.assert_close(output.weights, expected)
    assert torch.equal(output.anchors, outputs[0].anchors) and torch.equal(output.density, outputs[0].density)
    shared = ProductCredit(schemes=[UniformCredit(), EntropyCredit()]).assign(batch, evidence)
    assert torch.equal(shared.anchors, EntropyCredit().assign(batch, evidence).anchors)


def test_what_it_asks_for_is_what_they_ask_for():
    scheme = ProductCredit(
        schemes=[TokenLevelCredit(), AnchorOnlyCredit(), AtrlCredit(edges="both"), VppoCredit(mask_ratio=0.6)]
    )
    assert scheme.requests == (*TokenLevelCredit().requests, *AtrlCredit(edges="both").requests)
    assert scheme.picture_mask == PictureMask(ratio=0.6)
    assert (scheme.scope, scheme.normalised_over) == ("batch", "response")
    assert not (scheme.has_auxiliary_loss or scheme.needs_masked_gradient or scheme.is_uniform)
    with_loss = ProductCredit(schemes=[PapoCredit(), UniformCredit()])
    assert with_loss.has_auxiliary_loss and with_loss.needs_masked_gradient and with_loss.is_uniform
    assert with_loss.scope == "response"
    assert ProductCredit(schemes=[HiddenCosineCredit(), UniformCredit()]).needs_whole_rows
    assert not scheme.needs_whole_rows


def test_one_that_works_elsewhere_is_worth_waiting_for():
    class Elsewhere(UniformCredit):
        works_elsewhere = True

    assert ProductCredit(schemes=[UniformCredit(), Elsewhere()]).works_elsewhere
    assert not ProductCredit(schemes=[UniformCredit(), UniformCredit()]).works_elsewhere


def test_auxiliary_losses_add_up():
    parts = [PapoCredit(gamma=0.1, eta=0.0), UniformCredit(), PapoCredit(gamma=0.2, eta=0.5)]
    logprobs = torch.tensor([[-1.0, -2.0]])
    evidence = Evidence(logprobs, logprobs, {}, MaskedView(2 * logprobs, logprobs))
    expected = parts[0].auxiliary_loss(logprobs, evidence) + parts[2].auxiliary_loss(logprobs, evidence)
    torch.testing.assert_close(ProductCredit(schemes=parts).auxiliary_loss(logprobs, evidence), expected)


def test_all_are_opened_and_closed():
    """One that fails to open takes the others' processes with it."""
    log = []

    class Logged(UniformCredit):
        def open(self):
            log.append("open")
            if log.count("open") == 3:
                raise RuntimeError("no")

        def close(self):
            log.append("close")

    two = ProductCredit(schemes=[Logged(), Logged()])
    two.open()
    two.close()
    assert log == ["open", "open", "close", "close"]
    with pytest.raises(RuntimeError, match="no"):
        two.open()
    assert log[4:] == ["open", "close"]


def test_faulty_products_are_refused():
    with pytest.raises(ValueError, match=r"^credit\.schemes must name at least one scheme"):
        ProductCredit(schemes=[])
    with pytest.raises(ValueError, match=r"^credit\.schemes must agree on mask_ratio and seed, got 0\.5 .* and 0\.6 "):
        ProductCredit(schemes=[VppoCredit(), PapoCredit()])

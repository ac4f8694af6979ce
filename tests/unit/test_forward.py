"""One pass of the policy: what it says, and what a credit scheme gets to see of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from atrl.credit.attention import AttentionRequest
from atrl.credit.base import CreditScheme, PictureMask
from atrl.credit.bound import BoundCredit, PictureScale
from atrl.credit.entropy import EntropyCredit
from atrl.credit.papo import PapoCredit
from atrl.credit.probe import AttentionProbe, Recorder
from atrl.credit.product import ProductCredit
from atrl.credit.vppo import VppoCredit
from atrl.forward import ForwardPass, attention_maps, merge_evidence
from atrl.logprobs import process_logits, token_divergence
from atrl.models.load import PretrainedModel
from atrl.models.lora import Lora
from atrl.models.policy import response_logits
from atrl.timing import PhaseTimer
from atrl.types import CreditOutput
from tests.unit.attention import read

PASS = ForwardPass(temperature=0.7, banned_ids=(3, 5))
SCALE = PictureScale((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
REQUEST = AttentionRequest()


@dataclass(frozen=True)
class Looks(CreditScheme):
    """Asks for whatever a test wants."""

    mask: PictureMask | None = None
    auxiliary: bool = False
    reads: tuple = ()
    name = "looks"

    @property
    def requests(self):
        return self.reads

    @property
    def picture_mask(self):
        return self.mask

    @property
    def has_auxiliary_loss(self):
        return self.auxiliary

    @property
    def needs_masked_gradient(self):
        return self.auxiliary

    def assign(self, batch, evidence):
        return CreditOutput(batch.response_mask.float())


def bound(policy, scheme: Looks) -> BoundCredit:
    return BoundCredit(scheme, AttentionProbe(policy, scheme.requests) if scheme.requests else None, SCALE, None)


@pytest.mark.parametrize(
    ("uniform", "gradient", "looked"), [(True, False, False), (True, True, True), (False, False, True)]
)
def test_weights_of_one_look_at_no_masked_picture_without_a_gradient(
    policy, batch, monkeypatch, uniform, gradient, looked
):
    """A pass that scores for several updates would run the policy a second time for nothing."""
    monkeypatch.setattr(Looks, "is_uniform", uniform)
    credit = bound(policy, Looks(mask=PictureMask(ratio=0.5), auxiliary=True))
    with torch.set_grad_enabled(gradient):
        forward = PASS(policy, credit.prepare(batch, []), credit, read=True)
    assert (forward.evidence.masked is not None) is looked


def test_a_product_looks_at_the_masked_picture_without_a_gradient_only_where_weights_do(policy, batch):
    for partner, looked in [(PapoCredit(), False), (VppoCredit(scale_low=1.0, mask_ratio=0.6), True)]:
        credit = bound(policy, ProductCredit(schemes=[EntropyCredit(), PapoCredit(), partner]))
        with torch.no_grad():
            forward = PASS(policy, credit.prepare(batch, []), credit, read=True)
        assert (forward.evidence.masked is not None) is looked
        assert PASS(policy, credit.prepare(batch, []), credit, read=True).evidence.masked is not None


def test_divergence_by_hand():
    """p = (1/2, 1/2, 0), q = (1/4, 3/4, 0), the last banned: ½·ln 2 + ½·ln(2/3)."""
    p = torch.tensor([[[0.5, 0.5, 0.0]]]).log()
    q = torch.tensor([[[0.25, 0.75, 0.0]]]).log()
    expected = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()
    torch.testing.assert_close(token_divergence(p, q), expected[None, None])
    assert token_divergence(p, p).item() == 0 and not token_divergence(q, p).isnan().any()


def test_without_credit_nothing_is_kept(policy, batch):
    forward = PASS(policy, batch, None, read=True)
    assert forward.evidence is None and forward.logprobs.requires_grad and not forward.entropy.requires_grad
    assert (forward.logprobs[~batch.response_mask] == 0).all() and (forward.entropy[~batch.response_mask] == 0).all()


def test_evidence_is_that_of_the_same_pass(policy, batch):
    credit = bound(policy, Looks(reads=(REQUEST,)))
    forward = PASS(policy, batch, credit, read=True)
    credit.probe.detach()
    assert torch.equal(forward.evidence.logprobs, forward.logprobs.detach())
    assert not forward.evidence.logprobs.requires_grad and forward.evidence.masked is None
    torch.testing.assert_close(forward.evidence.read[REQUEST].peak, read(policy, batch, REQUEST).peak)
    assert PASS(policy, batch, credit, read=False).evidence is None


def test_reading_on_the_way_counts_as_credit_and_not_as_the_update(policy, batch, monkeypatch):
    monkeypatch.setattr(Recorder, "seconds", 1000.0)  # what the readers took
    credit = bound(policy, Looks(reads=(REQUEST,)))
    forward_pass = replace(PASS, timer=PhaseTimer())
    with forward_pass.timer.phase("update"):
        forward_pass(policy, batch, credit, read=True)
    assert forward_pass.timer.total["credit"] > 1000 and -1000 < forward_pass.timer.total["update"] < 0


@pytest.mark.parametrize("auxiliary", [False, True])
def test_the_masked_view_differs_by_the_picture_alone(checkpoint, batch, auxiliary):
    """Its dropout is that of the other pass, draw by draw: with nothing masked, both say the same. What is drawn after
    it is what would be drawn without it."""
    policy = PretrainedModel(path=str(checkpoint), lora=Lora(rank=4, dropout=0.5)).load(checkpoint).model.train()
    for name, parameter in policy.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    credit = bound(policy, Looks(mask=PictureMask(ratio=0.5), auxiliary=auxiliary))
    unmasked = replace(batch, masked_pixels=batch.pixels)
    torch.manual_seed(0)
    forward, masked_next = PASS(policy, unmasked, credit, read=True), torch.rand(1)
    assert torch.equal(forward.evidence.masked.logprobs, forward.logprobs)
    assert forward.evidence.masked.divergence.abs().max() < 1e-6
    torch.manual_seed(0)
    plain, plain_next = PASS(policy, unmasked, None, read=False), torch.rand(1)
    assert torch.equal(plain.logprobs, forward.logprobs) and torch.equal(plain_next, masked_next)
    assert not torch.allclose(PASS(policy, unmasked, None, read=False).logprobs, plain.logprobs, atol=1e-3)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_the_masked_view_is_a_pass_over_the_masked_pictures(policy, batch, auxiliary):
    credit = bound(policy, Looks(mask=PictureMask(ratio=0.5), auxiliary=auxiliary))
    prepared = credit.prepare(batch, [])
    forward = PASS(policy, prepared, credit, read=True)
    other = PASS(policy, replace(batch, pixels=prepared.masked_pixels), None, read=False)
    masked = forward.evidence.masked
    torch.testing.assert_close(masked.logprobs, other.logprobs)
    assert masked.logprobs.requires_grad is auxiliary and not masked.divergence.requires_grad
    with torch.no_grad():
        logits = [
            process_logits(response_logits(policy, view), temperature=0.7, banned_ids=(3, 5)).log_softmax(-1)
            for view in (batch, replace(batch, pixels=prepared.masked_pixels))
        ]
    expected = torch.where(batch.response_mask, token_divergence(*logits), 0.0)
    torch.testing.assert_close(masked.divergence, expected, atol=1e-5, rtol=1e-4)
    assert (masked.divergence[0][batch.response_mask[0]] > 0).all()  # a picture, half of it gone
    assert masked.divergence[1].abs().max() < 1e-6  # no picture, nothing to mask
    # In later passes of a batch only the auxiliary loss still needs the masked view.
    assert (PASS(policy, prepared, credit, read=False).evidence is not None) is auxiliary


def test_evidence_of_micro_batches_merges_to_the_whole(policy, batch):
    credit = bound(policy, Looks(mask=PictureMask(ratio=0.5), reads=(REQUEST,)))
    prepared = credit.prepare(batch, [])
    with torch.no_grad():
        whole = PASS(policy, prepared, credit, read=True).evidence
        parts = [PASS(policy, prepared.rows(slice(n, n + 2)), credit, read=True).evidence for n in (0, 2)]
    merged = merge_evidence(parts, batch.response_length)
    for name in ("logprobs", "entropy"):
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), atol=1e-5, rtol=0)
    for name in ("logprobs", "divergence"):
        torch.testing.assert_close(getattr(merged.masked, name), getattr(whole.masked, name), atol=1e-5, rtol=0)
    assert whole.read and not merged.read  # what was read from layers stays with its piece


def test_attention_maps_are_those_of_the_wanted_rollouts(policy, batch):
    credit = bound(policy, Looks(reads=(REQUEST,)))
    evidence = PASS(policy, batch, credit, read=True).evidence
    maps = attention_maps(evidence, 4, [0, 5, 7, 9])
    assert set(maps) == {5, 7}
    assert torch.equal(maps[5], evidence.read[REQUEST].image[1])
    # The whole micro-batch's would stay in memory behind a view.
    assert maps[5].untyped_storage().nbytes() == maps[5].nbytes
    assert attention_maps(None, 0, [0]) == {} and attention_maps(replace(evidence, read={}), 0, [0]) == {}

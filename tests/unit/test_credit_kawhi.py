"""KAWHI's equations by hand, and against queries and keys of the model's last layer."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from credit_evidence import batch_of

from atrl.credit.bound import BoundCredit, PictureScale, join_credit
from atrl.credit.kawhi import KawhiCredit
from atrl.credit.probe import AttentionProbe
from atrl.credit.query_key import QueryKeyCapture, QueryKeyRequest
from atrl.credit.spans import softmax_weights
from atrl.experience import build_experience
from atrl.forward import ForwardPass
from atrl.splitting import EvenSplit, GroupSplit, TokenBudgetSplit
from atrl.types import Evidence, Rollout, RolloutGroup

HALVING = 0.1 / math.log(2)
"""The temperature at which a cosine that is 0.1 lower halves a share."""
SCORES = torch.tensor([[[0.3, 0.1, 0.2, 0.0, 0.2, 0.0, 9.0]]])
BATCH = replace(batch_of([(6, 4)], padding=1), paragraphs=torch.tensor([[0, 0, 0, 1, 1, 2, -1]]))


def assign(scheme, scores=SCORES, batch=BATCH):
    capture = QueryKeyCapture(scores, torch.ones(1, 4, dtype=torch.bool), None)
    return scheme.assign(batch, Evidence(torch.zeros(1, 7), torch.zeros(1, 7), {scheme.requests[0]: capture}))


def test_three_paragraphs_by_hand():
    """Means 0.2, 0.1 and 0: shares 4/7, 2/7 and 1/7. With λ = 0.3 they become 0.7·share + 0.1 = 0.5, 0.3 and 0.2, and
    the weights 0.1 + 0.9·that = 0.55, 0.37 and 0.28; of 3, 2 and 1 tokens, 2.67 in all, scaled to 6."""
    output = assign(KawhiCredit(temperature=HALVING, mixing=0.3))
    expected = torch.tensor([[0.55, 0.55, 0.55, 0.37, 0.37, 0.28, 0.0]]) * 6 / 2.67
    torch.testing.assert_close(output.weights, expected)
    torch.testing.assert_close(output.density, torch.tensor([[0.2, 0.2, 0.2, 0.1, 0.1, 0.0, 0.0]]))
    assert output.anchors.nonzero()[:, 1].tolist() == [0]  # round(0.15·6), the best of the best paragraph


def test_paragraphs_on_a_line_by_hand():
    """Means 0.2, 0.1 and 0 on the line from 1 to 3: 3, 2 and 1; of 3, 2 and 1 tokens 14 in all."""
    output = assign(KawhiCredit(weights="load_map", anchor_weight=3.0, rest_weight=1.0))
    torch.testing.assert_close(output.weights, torch.tensor([[3.0, 3, 3, 2, 2, 1, 0]]) * 6 / 14)


def test_an_even_share_of_all_tells_nothing_apart():
    output = assign(KawhiCredit(mixing=1.0))
    torch.testing.assert_close(output.weights, BATCH.response_mask.float())


def test_one_paragraph_weighs_1():
    """Its share is 1, its weight w_max = 1, and so the mean."""
    one = replace(BATCH, paragraphs=BATCH.paragraphs.clamp_max(0))
    assert torch.equal(assign(KawhiCredit(), batch=one).weights, BATCH.response_mask.float())


def test_before_scaling_the_weights_are_the_papers():
    """As above, 0.55 and 0.28; span 1 has no token and is none of the M = 2, whose shares are 4/5 and 1/5: with λ = 0.3
    0.71 and 0.29, so 0.1 + 0.9·0.71 = 0.739 and 0.361."""
    three = {"temperature": HALVING, "mixing": 0.3, "low": 0.1, "high": 1.0}
    found = softmax_weights(np.array([0.2, 0.1, 0.0]), np.array([0, 2]), **three)
    assert found.tolist() == pytest.approx([0.55, 0.28])
    found = softmax_weights(np.array([0.2, -np.inf, 0.0]), np.array([0, 2, 2]), **three)
    assert found.tolist() == pytest.approx([0.739, 0.361, 0.361])


def test_a_cold_softmax_stays_finite():
    """All of the softmax to the nearest, 0.9·1 + 0.1/2 of w_max; and none to the other."""
    found = softmax_weights(np.array([1.0, -1.0]), np.array([0, 1]), temperature=1e-9, mixing=0.1, low=0.0, high=1.0)
    assert found.tolist() == pytest.approx([0.95, 0.05])


def test_paragraphs_must_be_there():
    with pytest.raises(AssertionError, match="built without the paragraphs"):
        assign(KawhiCredit(), batch=replace(BATCH, paragraphs=None))


# With the model.

RESPONSES = [
    [["(2,3) is A.\n\n", "So\n \n", "the answer is 5."], ["No line.\nis blank"]],
    [["1\n\n", "22\n\n", "333\n\n", "4444\n\n", "5"], ["B"]],
]
"""Of two prompts two responses each, paragraph by paragraph."""


@pytest.fixture
def groups(prompts, processor) -> list[RolloutGroup]:
    found = []
    for prompt, responses in zip((prompts["wide"], prompts["square"]), RESPONSES, strict=True):
        ids = [[*chain(*processor.tokenizer(parts)["input_ids"])] for parts in responses]
        texts = ["".join(parts) for parts in responses]
        found.append(RolloutGroup(prompt, [Rollout(own, [0.0] * len(own), True) for own in ids], texts, 0))
    return found


def weighed(policy, processor, scheme, groups, split):
    """Weights in the order of the rollouts, the batch that was cut and what a reader of all layers saw of it."""
    everything = QueryKeyRequest(row="own", pooling="mean")
    probe = AttentionProbe(policy, [*scheme.requests, everything])
    bound = BoundCredit(scheme, probe, PictureScale((), ()), processor.tokenizer)
    batch = bound.prepare(build_experience(groups, pad_id=0), groups)
    order = split.order(batch)
    ordered, parts, captures = batch.rows(order), [], []
    with torch.no_grad():
        for rows in split.slices(ordered):
            piece = split.piece(ordered, rows)
            evidence = ForwardPass(temperature=1.0, banned_ids=())(policy, piece, bound, read=True).evidence
            parts += bound.begin(piece, evidence)()
            captures.append(evidence.read[everything])
    probe.detach()
    credit = join_credit(parts, batch.response_length)
    return credit.rows(order.argsort()), batch, captures


def test_the_equations_on_the_last_layers_queries_and_keys(policy, processor, groups):
    """Heads 1 and 3 of the last of 3 layers of 4."""
    scheme = KawhiCredit(reduction="mean", head_numbers=(3, 1), temperature=0.01)
    credit, batch, [capture] = weighed(policy, processor, scheme, groups, EvenSplit(size=4))
    scores = capture.score[:, [2 * 4 + 1, 2 * 4 + 3]].mean(dim=1)
    for row, parts in enumerate(parts for responses in RESPONSES for parts in responses):
        lengths = torch.tensor([len(ids) for ids in processor.tokenizer(parts)["input_ids"]])
        paragraph, tokens = torch.arange(len(parts)).repeat_interleave(lengths), int(lengths.sum())
        assert batch.paragraphs[row, :tokens].tolist() == paragraph.tolist()
        means = torch.stack([part.mean() for part in scores[row, :tokens].split(lengths.tolist())])
        mixed = 0.9 * (means / 0.01).softmax(0) + 0.1 / len(parts)
        expected = (0.1 + 0.9 * mixed)[paragraph]
        torch.testing.assert_close(credit.weights[row, :tokens], expected / expected.mean(), atol=1e-4, rtol=0)
        assert (credit.weights[row, tokens:] == 0).all()
    assert credit.weights[0].max() > 1.2, "a test of even weights would prove little"


@pytest.mark.parametrize("split", [EvenSplit(size=1), GroupSplit(), TokenBudgetSplit(max_tokens=1)])
def test_weights_are_the_same_however_the_batch_is_cut(policy, processor, groups, split):
    scheme = KawhiCredit(temperature=0.01)
    whole, batch, _ = weighed(policy, processor, scheme, groups, EvenSplit(size=4))
    cut, _, pieces = weighed(policy, processor, scheme, groups, split)
    torch.testing.assert_close(cut.weights, whole.weights, atol=1e-4, rtol=0)
    assert len(pieces) > 1 and [len(set(row.tolist()) - {-1}) for row in batch.paragraphs] == [3, 1, 5, 1]

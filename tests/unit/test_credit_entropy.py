"""Beyond the 80/20 rule, within a response and within the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from credit_evidence import batch_of

from atrl.credit.entropy import EntropyCredit
from atrl.types import Evidence

ENTROPY = torch.tensor([[0.9, 0.8, 0.1, 0.7, 0.6], [0.2, 0.3, 0.0, 9.0, 9.0]])
"""The second response has three tokens; what stands in its padding is larger than all."""
BATCH = batch_of([(5, 4), (3, 4)])


def assign(scheme, entropy=ENTROPY, batch=BATCH):
    return scheme.assign(batch, Evidence(torch.zeros_like(entropy), entropy, {}))


def test_within_the_response_each_keeps_its_share():
    """round(0.4·5) = 2 of five weigh 5/2, round(0.4·3) = 1 of three weighs 3."""
    output = assign(EntropyCredit(ratio=0.4))
    assert output.weights.tolist() == [[2.5, 2.5, 0, 0, 0], [0, 3, 0, 0, 0]]
    assert output.anchors.nonzero().tolist() == [[0, 0], [0, 1], [1, 1]]


def test_within_the_batch_a_response_may_go_untrained():
    """round(0.4·8) = 3 of eight weigh 8/3, all of them in the first response."""
    output = assign(EntropyCredit(ratio=0.4, within="batch"))
    torch.testing.assert_close(output.weights, torch.tensor([[1.0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]) * 8 / 3)
    assert output.anchors.nonzero().tolist() == [[0, 0], [0, 1], [0, 3]]


def test_without_entropy_all_tokens_are_alike():
    for within in ("response", "batch"):
        output = assign(EntropyCredit(within=within), 0 * ENTROPY)
        assert torch.equal(output.weights, BATCH.response_mask.float()) and not output.anchors.any()


@pytest.mark.parametrize("within", ["response", "batch"])
def test_a_token_that_was_certain_is_never_chosen(within):
    """As truncated sampling leaves many. Two of eight are in doubt: which come first doesn't choose others."""
    entropy = torch.tensor([[0.0, 0.8, 0.0, 0.0, 0.0], [0.0, 0.3, 0.0, 9.0, 9.0]])
    output = assign(EntropyCredit(ratio=0.9, within=within), entropy)
    assert output.anchors.nonzero().tolist() == [[0, 1], [1, 1]]
    each = {"response": [5.0, 3.0], "batch": [4.0, 4.0]}[within]
    assert output.weights.tolist() == [[0, each[0], 0, 0, 0], [0, each[1], 0, 0, 0]]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_ties_within_the_batch_do_not_go_by_its_order(order):
    """round(0.5·6) = 3 of six, of which five are in doubt alike: those of the rollout whose key comes first."""
    keys = [f"0/{row}/0" for row in order]
    batch = replace(BATCH, keys=keys, response_mask=torch.ones(2, 3, dtype=torch.bool))
    first, entropy = order.index(0), torch.ones(2, 3)
    entropy[1 - first, 2] = 0.5
    output = assign(EntropyCredit(ratio=0.5, within="batch"), entropy, batch)
    assert output.anchors[first].all() and not output.anchors[1 - first].any()


def test_only_the_batch_form_needs_the_batch():
    assert (EntropyCredit().scope, EntropyCredit().normalised_over) == ("response", "response")
    scheme = EntropyCredit(within="batch")
    assert (scheme.scope, scheme.normalised_over) == ("batch", "batch")
    assert scheme.requests == () and scheme.picture_mask is None


@pytest.mark.parametrize("ratio", [0.0, 1.5])
def test_ranges(ratio):
    with pytest.raises(ValueError, match=rf"^credit\.ratio must be in \(0, 1\], got {ratio}"):
        EntropyCredit(ratio=ratio)

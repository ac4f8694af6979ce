"""Maps by head against every token's map, read in full detail."""

from __future__ import annotations

import pytest
import torch

from atrl.credit.attention import AttentionRequest
from atrl.credit.head_maps import HeadMapRequest
from atrl.credit.probe import AttentionProbe
from atrl.models.policy import response_logits
from tests.unit.attention import read


@pytest.mark.parametrize(("row", "sink_factor"), [("predicting", 0.0), ("own", 2.0)])
def test_a_heads_map_is_the_weighted_mean_of_its_tokens(policy, batch, row: str, sink_factor: float) -> None:
    batch = batch.rows(slice(0, 3))  # as many as there are heads would tell rows and heads apart nowhere
    whole = read(policy, batch, AttentionRequest(sink_factor=sink_factor, neighbours=0, detail=True, row=row))
    weights = torch.rand(batch.response_mask.shape, generator=torch.Generator().manual_seed(0))
    request = HeadMapRequest(weights=weights, sink_factor=sink_factor, row=row)
    probe = AttentionProbe(policy, [AttentionRequest()])  # as a run's: its own request is not read
    with torch.no_grad(), probe.capture(batch, [request]) as recorder:
        response_logits(policy, batch)
    probe.detach()
    assert list(recorder.results()) == [request]
    share = torch.where(batch.response_mask, weights, 0.0)
    share = share / share.sum(dim=1, keepdim=True)
    expected = torch.einsum("bt,blhtv->blhv", share, whole.mass)
    torch.testing.assert_close(recorder.results()[request], expected, atol=1e-6, rtol=1e-5)
    assert float(expected.max()) > 0.01

"""What a step is summed up as."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from atrl.metrics import rollout_metrics


def group(*lengths: int):
    return SimpleNamespace(rollouts=[SimpleNamespace(token_ids=[0] * length) for length in lengths])


def test_tokens_that_dynamic_sampling_left_out_were_generated_too():
    """4 tokens in the batch and 6 beside it, in two seconds; lengths are those of the batch."""
    mask = torch.tensor([[True, False, False], [True, True, True]])
    experience = SimpleNamespace(response_mask=mask, sampler_logprobs=torch.zeros(2, 3))
    step = SimpleNamespace(
        groups=[group(1, 3)], discarded=[(group(2, 4), [])], experience=experience, logprobs=torch.full((2, 3), 0.5)
    )
    metrics = rollout_metrics(step, 2.0)
    assert metrics["rollout/tokens_per_second"] == 5.0 and metrics["rollout/response_length"] == 2.0
    assert metrics["rollout/logprob_gap_mean"] == metrics["rollout/logprob_gap_max"] == 0.5

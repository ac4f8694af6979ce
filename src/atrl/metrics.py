"""What a step is summed up as: numbers by name, from the values that its stages returned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from atrl import parallel
from atrl.loss.base import log_ratio
from atrl.loss.correction import ratio_metrics
from atrl.types import Reward, Status

if TYPE_CHECKING:
    from atrl.step import StepRecord


def mean_of(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return sum(values) / len(values) if values else None


def reward_metrics(rewards: Sequence[Sequence[Reward]]) -> dict[str, float]:
    """Mean reward, mean of each part, share of each status, and share of groups whose rewards are all equal."""
    flat = [reward for group in rewards for reward in group]
    metrics = {"reward/mean": sum(reward.total for reward in flat) / len(flat)}
    for name in flat[0].parts:
        metrics[f"reward/{name}"] = sum(reward.parts[name] for reward in flat) / len(flat)
    counts = Counter(reward.status for reward in flat)
    metrics |= {f"reward/{status.value}": counts[status] / len(flat) for status in Status}
    flat_groups = sum(len({reward.total for reward in group}) == 1 for group in rewards)
    return metrics | {"reward/flat_groups": flat_groups / len(rewards)}


def rollout_metrics(step: StepRecord, rollout_seconds: float) -> dict[str, float]:
    """Of all ranks: lengths in tokens, tokens generated per second of the rollout phase, how far the sampler is off.

    The gap is between the sampler's log-prob of a token and the trainer's for the same weights, in nats; what
    `ratio_metrics` says in ratios of probabilities.
    """
    mask = step.experience.response_mask
    difference = log_ratio(step.logprobs, step.experience.sampler_logprobs, mask).double()
    gap = difference[mask].abs()
    lengths = [len(rollout.token_ids) for group in step.groups for rollout in group.rollouts]
    left_out = sum(len(rollout.token_ids) for group, _ in step.discarded for rollout in group.rollouts)
    tokens, rollouts, gaps, unused = parallel.sums([sum(lengths), len(lengths), float(gap.sum()), left_out])
    longest, widest = zip(*parallel.gather((max(lengths), float(gap.max()))), strict=True)
    ratios = [torch.cat(parallel.gather(part.cpu())).numpy() for part in (difference[mask], difference.sum(dim=1))]
    return ratio_metrics(*ratios) | {
        "rollout/response_length": tokens / rollouts,
        "rollout/response_length_max": float(max(longest)),
        "rollout/tokens_per_second": (tokens + unused) / max(rollout_seconds, 1e-9),
        "rollout/logprob_gap_mean": gaps / tokens,
        "rollout/logprob_gap_max": max(widest),
    }

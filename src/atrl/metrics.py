"""What a step is summed up as: numbers by name, from the values that its stages returned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from atrl import parallel
from atrl.loss.base import log_ratio
from atrl.loss.correction import ratio_metrics
from atrl.loss.kl import k3_divergence
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


@dataclass(frozen=True, slots=True)
class SamplerGap:
    """How far the sampler's log-probs of a step's rollouts are from the trainer's for the same weights."""

    mean: float
    """Absolute difference of a token's log-prob, in nats."""
    largest: float
    """The largest of any token."""
    kl: float
    """KL(sampler ‖ trainer) a token, in nats."""


def sampler_gap(step: StepRecord) -> SamplerGap:
    """Over the trained tokens of all ranks; `kl` is the mean of Schulman's k3 (`k3_divergence`) on tokens that the
    sampler drew.
    """
    mask = step.experience.response_mask
    sampler, trainer = step.experience.sampler_logprobs[mask].double(), step.logprobs[mask].double()
    difference = (trainer - sampler).abs()
    kl = k3_divergence(sampler, trainer)
    tokens, differences, kls = parallel.sums([len(sampler), float(difference.sum()), float(kl.sum())])
    largest = torch.tensor(parallel.gather(float(difference.max()))).max()  # max() of Python would lose a NaN
    return SamplerGap(mean=differences / tokens, largest=float(largest), kl=kls / tokens)


def left_out_tokens(step: StepRecord) -> int:
    """Tokens of the responses that all ranks drew and left out."""
    own = sum(len(rollout.token_ids) for group, _ in step.discarded for rollout in group.rollouts)
    return sum(parallel.gather(own))


def rollout_metrics(step: StepRecord, rollout_seconds: float) -> dict[str, float]:
    """Of all ranks: lengths in tokens, tokens generated per second of the rollout phase, how far the sampler is off.

    `SamplerGap` says that in nats, `ratio_metrics` in ratios of probabilities.
    """
    gap = sampler_gap(step)
    lengths = [len(rollout.token_ids) for group in step.groups for rollout in group.rollouts]
    tokens, rollouts = parallel.sums([sum(lengths), len(lengths)])
    mask = step.experience.response_mask
    difference = log_ratio(step.logprobs, step.experience.sampler_logprobs, mask).double()
    ratios = [torch.cat(parallel.gather(part.cpu())).numpy() for part in (difference[mask], difference.sum(dim=1))]
    return ratio_metrics(*ratios) | {
        "rollout/response_length": tokens / rollouts,
        "rollout/response_length_max": float(max(parallel.gather(max(lengths)))),
        "rollout/tokens_per_second": (tokens + left_out_tokens(step)) / max(rollout_seconds, 1e-9),
        "rollout/logprob_gap_mean": gap.mean,
        "rollout/logprob_gap_max": gap.largest,
        "rollout/sampler_trainer_kl": gap.kl,
    }

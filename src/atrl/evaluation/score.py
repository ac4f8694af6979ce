"""Accuracy of a sampler's policy on prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from atrl import parallel
from atrl.evaluation.intervals import clustered_interval, wilson_interval
from atrl.rollout.dealing import with_prompts, without_pictures
from atrl.types import Prompt, Reward, RolloutGroup, Status

if TYPE_CHECKING:
    from atrl.rewards.weighted import WeightedReward
    from atrl.rollout.base import ResponseSource, Sampling


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """How a policy did: accuracy with its 95 % interval, and the rollouts behind it."""

    accuracy: float
    ci95: tuple[float, float]
    samples: int
    statuses: dict[str, int]
    groups: list[RolloutGroup]
    rewards: list[list[Reward]]
    right: dict[str, float]
    """The share of right responses by the problem's id; empty where that is not known."""

    def in_short(self) -> dict[str, Any]:
        """The figures without the rollouts, ready for JSON."""
        return {"accuracy": self.accuracy, "ci95": list(self.ci95), "samples": self.samples}

    @classmethod
    def from_short(cls, figures: dict[str, Any]) -> Score:
        """A score without its rollouts: the figures, and what was right if `figures` hold that too."""
        return cls(
            figures["accuracy"], tuple(figures["ci95"]), figures["samples"], {}, [], [], figures.get("right", {})
        )


def score(
    sampler: ResponseSource, prompts: Sequence[Prompt], reward: WeightedReward, sampling: Sampling, *, seed: str
) -> Score:
    """Sample `sampling.group_size` responses to each prompt and score them; the interval is over problems.

    Raises:
        ValueError: if there is no prompt.
    """
    _require(prompts)
    groups = sampler.generate(prompts, sampling, seed=seed)
    return _of(groups, reward.score(groups))


def score_together(
    sampler: ResponseSource, prompts: Sequence[Prompt], reward: WeightedReward, sampling: Sampling, *, seed: str
) -> Score:
    """The same, each rank answering its share of `prompts`, which may be none; every rank gets the whole score.

    Every rank has all of `prompts`, so that no picture is sent.
    """
    _require(prompts)
    own = sampler.generate(parallel.share(prompts), sampling, seed=seed)
    shares = parallel.gather(([without_pictures(group) for group in own], reward.score(own)))
    groups = with_prompts([group for groups, _ in shares for group in groups], prompts)
    return _of(groups, [rewards for _, scored in shares for rewards in scored])


def _require(prompts: Sequence[Prompt]) -> None:
    if not prompts:
        raise ValueError("there is no problem to score: every prompt was dropped or the split is empty")


def on_problems(score: Score, ids: Collection[str]) -> Score:
    """The part of `score` that is of the problems with these ids.

    Raises:
        ValueError: if it is of none of them.
    """
    kept = [pair for pair in zip(score.groups, score.rewards, strict=True) if pair[0].prompt.problem.id in ids]
    if not kept:
        raise ValueError(f"none of the {len(score.groups)} problems that were scored is among the {len(ids)} asked for")
    return _of([group for group, _ in kept], [rewards for _, rewards in kept])


def _of(groups: list[RolloutGroup], rewards: list[list[Reward]]) -> Score:
    statuses = Counter(verdict.status for group in rewards for verdict in group)
    shares = [sum(verdict.status is Status.RIGHT for verdict in group) / len(group) for group in rewards]
    single = len(rewards[0]) == 1 or len(rewards) == 1
    samples = sum(statuses.values())
    right = statuses[Status.RIGHT]
    return Score(
        accuracy=right / samples,
        ci95=wilson_interval(right, samples) if single else clustered_interval(shares),
        samples=samples,
        statuses={status.value: statuses[status] for status in Status},
        groups=groups,
        rewards=rewards,
        right={group.prompt.problem.id: share for group, share in zip(groups, shares, strict=True)},
    )


def held_out_sampling(sampling: Sampling, *, samples: int, greedy: bool = False) -> Sampling:
    """How held-out problems are sampled: from the whole distribution at temperature 1, or greedily.

    Whatever the training rollouts use.
    """
    temperature = 0.0 if greedy else 1.0
    return replace(sampling, group_size=samples, temperature=temperature, top_k=None, top_p=1.0, min_p=0.0)

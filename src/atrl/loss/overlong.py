"""A price on responses that come near the limit on their length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from atrl.types import Reward, RolloutGroup


@dataclass(frozen=True, kw_only=True)
class OverlongPenalty:
    """``weight`` times 0 up to ``L - cache`` tokens, then ``(L - cache - length) / cache`` down to -1 at L.

    L is the limit on a response's length; a response that the limit cut gets -1 in any case. Soft overlong
    punishment, DAPO: Yu et al., arXiv 2503.14476, section 3.4, equation 13.

    Args:
        cache_tokens: the last so many tokens below the limit, over which the penalty falls; at most the limit. None is
            a fifth of the limit, as in the paper (4,096 of 20,480).
        weight: of the penalty, in units of reward.

    Raises:
        ValueError: if `cache_tokens` is below 1 or `weight` not positive.
    """

    cache_tokens: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.cache_tokens is not None and self.cache_tokens < 1:
            raise ValueError(
                f"algorithm.overlong.cache_tokens must be at least 1, got {self.cache_tokens}: "
                "null is a fifth of rollout.max_response_tokens"
            )
        if self.weight <= 0:
            raise ValueError(
                f"algorithm.overlong.weight must be positive, got {self.weight}: algorithm.overlong=null is off"
            )

    def penalty(
        self,
        lengths: Int[Tensor, "group sample"],
        finished: Bool[Tensor, "group sample"],
        max_response_tokens: int,
    ) -> Float[Tensor, "group sample"]:
        """What is added to the rewards, in ``[-weight, 0]``; `lengths` are in tokens."""
        cache = max(1, max_response_tokens // 5) if self.cache_tokens is None else self.cache_tokens
        assert cache <= max_response_tokens, "algorithm.overlong.cache_tokens is above the response limit"
        fallen = ((max_response_tokens - cache - lengths) / cache).clamp(-1.0, 0.0)
        return self.weight * torch.where(finished, fallen, -1.0)

    def apply(
        self, groups: Sequence[RolloutGroup], rewards: Sequence[Sequence[Reward]], max_response_tokens: int
    ) -> list[list[Reward]]:
        """`rewards` with the penalty added to each total; the part ``overlong`` says how much it was, unweighted."""
        shaped = []
        for group, verdicts in zip(groups, rewards, strict=True):
            lengths = torch.tensor([[len(rollout.token_ids) for rollout in group.rollouts]])
            finished = torch.tensor([[rollout.finished for rollout in group.rollouts]])
            penalties = self.penalty(lengths, finished, max_response_tokens)[0].tolist()
            shaped.append([self._add(*pair) for pair in zip(verdicts, penalties, strict=True)])
        return shaped

    def _add(self, reward: Reward, penalty: float) -> Reward:
        return replace(reward, total=reward.total + penalty, parts=reward.parts | {"overlong": penalty / self.weight})

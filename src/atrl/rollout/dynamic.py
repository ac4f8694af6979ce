"""Dynamic sampling: prompts whose responses all earn the same are replaced by others before the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from atrl import parallel
from atrl.rollout.dealing import PromptStream, Scored, dealt
from atrl.types import Prompt, Reward, RolloutGroup

Draw = Callable[[Sequence[Prompt], int], tuple[Sequence[RolloutGroup], Sequence[list[Reward]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which of the groups that all ranks drew make up the batch, by their numbers in the order of drawing."""

    kept: list[int]
    left_out: list[int]
    """Their rewards are all equal."""
    filled_up: int
    """How many of `kept` have equal rewards, which the bound on draws left no time to replace."""


@dataclass(frozen=True, slots=True, eq=False)
class DynamicBatch:
    """This rank's share of a batch as large as was asked for, in order of drawing, and of what was drawn besides."""

    groups: list[RolloutGroup]
    rewards: list[list[Reward]]
    discarded: list[Scored]
    """Not in the batch, and without their pictures. They still count in a run's statistics of rewards."""
    choice: Choice | None
    """Of the global batch; None without dynamic sampling."""

    def rewarded(self, reward: Callable[[Sequence[RolloutGroup], Sequence[list[Reward]]], list[list[Reward]]]) -> Self:
        """With what `reward` makes of the rewards, of those that are not in the batch too."""
        others = [group for group, _ in self.discarded]
        rewards = reward(others, [rewards for _, rewards in self.discarded])
        return replace(
            self,
            rewards=reward(self.groups, self.rewards),
            discarded=list(zip(others, rewards, strict=True)),
        )


@dataclass(frozen=True, kw_only=True)
class DynamicSampling:
    """Draws prompts until enough groups have unequal rewards: the others' advantages, and gradients, are 0.

    DAPO: Yu et al., arXiv 2503.14476, section 3.2, equation 11. There a group counts if some of its answers are right
    and some wrong; here if its rewards differ before the overlong penalty, whatever they are of. The paper draws
    without a bound; here the batch is filled up with the equal groups drawn last when `max_draws` is reached, so that
    its size never changes.

    Args:
        max_draws: rounds of sampling in all; the first is the batch itself, so 1 replaces nothing.

    Raises:
        ValueError: if `max_draws` is below 1.
    """

    max_draws: int = 4

    def __post_init__(self) -> None:
        if self.max_draws < 1:
            raise ValueError(
                f"algorithm.dynamic_sampling.max_draws must be at least 1, got {self.max_draws}: "
                "algorithm.dynamic_sampling=null is off"
            )

    def fill(self, prompts: Sequence[Prompt], *, draw: Draw, stream: PromptStream) -> DynamicBatch:
        """As many groups as `prompts`; a function of what `draw` and `stream` return alone.

        Of every round's prompts each rank draws its share, and goes on by the verdicts on all ranks' groups. So the
        batch does not depend on the split, and all ranks take equally many rounds: a rank whose share is empty calls
        `draw` all the same, because a sampler may need all of them at once.

        Args:
            prompts: this rank's share of the batch's.
            draw: (prompts, attempt from 0) → a group for each and the rewards of its rollouts, in order.
            stream: where further prompts come from; every rank's is at the same place.
        """
        size = sum(parallel.gather(len(prompts)))
        held: dict[int, Scored] = {}
        differ: list[bool] = []
        pending = prompts
        for attempt in range(self.max_draws):
            groups, rewards = draw(pending, attempt)
            assert len(groups) == len(pending), f"{len(pending)} prompts were drawn, {len(groups)} groups came back"
            verdicts = parallel.gather([rewards_differ(group) for group in rewards])
            first = len(differ) + sum(len(share) for share in verdicts[: parallel.rank()])
            held |= enumerate(zip(groups, rewards, strict=True), start=first)
            differ += [verdict for share in verdicts for verdict in share]
            missing = size - sum(differ)
            if missing == 0 or attempt + 1 == self.max_draws:
                break
            pending = _share_of_further(missing, stream)
        choice = choose(differ, size)
        kept, left_out = dealt(held, kept=choice.kept, left_out=choice.left_out, again=stream.again)
        return DynamicBatch([group for group, _ in kept], [rewards for _, rewards in kept], left_out, choice)


def rewards_differ(rewards: Sequence[Reward]) -> bool:
    """Whether a group compares anything: its total rewards are not all equal, in float32 as the advantage has them."""
    return torch.tensor([reward.total for reward in rewards], dtype=torch.float32).unique().numel() > 1


def choose(differ: Sequence[bool], size: int) -> Choice:
    """The `size` groups that are kept: those with unequal rewards, filled up with the last of the others.

    Args:
        differ: [group] in the order of drawing, whether its rewards do; at least `size` groups, and at most `size` of
            them that do.
    """
    equal = [number for number, differs in enumerate(differ) if not differs]
    filled_up = size - (len(differ) - len(equal))
    assert 0 <= filled_up <= len(equal), f"{len(differ)} groups, {len(equal)} of them equal, do not give {size}"
    left_out = equal[: len(equal) - filled_up]
    kept = sorted(set(range(len(differ))).difference(left_out))
    return Choice(kept=kept, left_out=left_out, filled_up=filled_up)


def _share_of_further(count: int, stream: PromptStream) -> Sequence[Prompt]:
    """A function of its own, so that the other ranks' prompts and their pictures are let go before sampling."""
    prompts = stream.take(count)
    assert len(prompts) == count, f"{count} further prompts were asked for, {len(prompts)} came"
    return parallel.share(prompts)


def sampling_metrics(choice: Choice) -> dict[str, float]:
    """How many groups were drawn, left out for equal rewards, and kept all the same when the draws ran out."""
    return {
        "rollout/drawn_groups": float(len(choice.kept) + len(choice.left_out)),
        "rollout/discarded_groups": float(len(choice.left_out)),
        "rollout/filled_up_groups": float(choice.filled_up),
    }

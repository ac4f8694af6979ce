"""Dynamic sampling: prompts whose responses all earn the same are replaced by others before the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from atrl.types import Prompt, Reward, RolloutGroup

Scored = tuple[RolloutGroup, list[Reward]]
Draw = Callable[[Sequence[Prompt], int], tuple[Sequence[RolloutGroup], Sequence[list[Reward]]]]
More = Callable[[int], Sequence[Prompt]]


@dataclass(frozen=True, slots=True, eq=False)
class DynamicBatch:
    """A batch as large as was asked for, in order of drawing, and what was drawn besides."""

    groups: list[RolloutGroup]
    rewards: list[list[Reward]]
    discarded: list[Scored]
    """Not in the batch: their rewards are all equal. They still count in a run's statistics of rewards."""
    filled_up_groups: int
    """Groups of the batch with equal rewards, which the bound on draws left no time to replace."""

    @property
    def discarded_groups(self) -> int:
        """Groups that were sampled and left out."""
        return len(self.discarded)

    @property
    def drawn_groups(self) -> int:
        """Groups that were sampled in all."""
        return len(self.groups) + len(self.discarded)


@dataclass(frozen=True, kw_only=True)
class DynamicSampling:
    """Draws prompts until enough groups have unequal rewards: the others' advantages, and gradients, are 0.

    DAPO: Yu et al., arXiv 2503.14476, section 3.2, equation 11. The paper draws without a bound; here the batch is
    filled up with the equal groups drawn last when `max_draws` is reached, so that its size never changes.

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

    def fill(self, prompts: Sequence[Prompt], *, draw: Draw, more: More) -> DynamicBatch:
        """As many groups as `prompts`; a function of what `draw` and `more` return alone.

        Args:
            prompts: of the batch.
            draw: (prompts, attempt from 0) → a group for each and the rewards of its rollouts, in order.
            more: number → as many further prompts.
        """
        drawn: list[Scored] = []
        pending = prompts
        for attempt in range(self.max_draws):
            groups, rewards = draw(pending, attempt)
            assert len(groups) == len(pending), f"{len(pending)} prompts were drawn, {len(groups)} groups came back"
            drawn += zip(groups, rewards, strict=True)
            missing = len(prompts) - sum(rewards_differ(rewards) for _, rewards in drawn)
            if missing == 0 or attempt + 1 == self.max_draws:
                break
            pending = more(missing)
            assert len(pending) == missing, f"{missing} further prompts were asked for, {len(pending)} came"
        return _batch(drawn, missing)


def rewards_differ(rewards: Sequence[Reward]) -> bool:
    """Whether a group compares anything: its total rewards are not all equal."""
    return len({reward.total for reward in rewards}) > 1


def _batch(drawn: Sequence[Scored], missing: int) -> DynamicBatch:
    equal = [index for index, (_, rewards) in enumerate(drawn) if not rewards_differ(rewards)]
    left_out = set(equal[: len(equal) - missing])
    chosen = [entry for index, entry in enumerate(drawn) if index not in left_out]
    return DynamicBatch(
        groups=[group for group, _ in chosen],
        rewards=[rewards for _, rewards in chosen],
        discarded=[drawn[index] for index in sorted(left_out)],
        filled_up_groups=missing,
    )


def sampling_metrics(batch: DynamicBatch) -> dict[str, float]:
    """How many groups were drawn, left out for equal rewards, and kept all the same when the draws ran out."""
    return {
        "rollout/drawn_groups": float(batch.drawn_groups),
        "rollout/discarded_groups": float(batch.discarded_groups),
        "rollout/filled_up_groups": float(batch.filled_up_groups),
    }

"""The values inside a training step and the record that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from atrl import parallel
from atrl.credit.bound import Begun
from atrl.forward import Forward
from atrl.loss.aggregation import BatchTotals
from atrl.rollout.dynamic import DynamicBatch
from atrl.splitting import join_rows
from atrl.types import CreditOutput, Evidence, Experience, Reward, RolloutGroup

SHOWN_GROUPS = 4
"""The first rollouts of so many groups keep their attention on the picture, for the report."""


@dataclass(frozen=True, slots=True, eq=False)
class StepRecord:
    """Everything one step produced on this rank, for callbacks to log and record; they must not change it."""

    step: int
    groups: list[RolloutGroup]
    rewards: list[list[Reward]]
    discarded: list[tuple[RolloutGroup, list[Reward]]]
    """Groups that dynamic sampling drew and left out, with their rewards."""
    advantages: Float[Tensor, "group sample"]
    experience: Experience
    credit: CreditOutput | None
    attention: dict[int, Float[Tensor, "response image"]]
    """By rollout, for a few of them: mass of each token's row on each image token, largest over the heads read."""
    logprobs: Float[Tensor, "rollout response"]
    """Of the policy that sampled, before this step's update; 0 on padding."""
    entropy: Float[Tensor, "rollout response"]
    """Of the same policy, in nats; 0 on padding."""
    losses: Float[Tensor, "rollout response"]
    """Of the first update, by token: weighed by credit, not yet aggregated, without a scheme's auxiliary loss."""
    metrics: dict[str, float]
    """Of the global batch."""

    @classmethod
    def of(
        cls,
        *,
        step: int,
        drawn: DynamicBatch,
        advantages: Float[Tensor, "group sample"],
        scored: Scored,
        outcomes: Sequence[Outcome],
        credit: CreditOutput | None,
        order: Int[Tensor, "rollout"],
        metrics: dict[str, float],
    ) -> StepRecord:
        """With the rollouts in the order of drawing again, where the step took them in `order`.

        `outcomes` are those of the first update, whose policy is the one that sampled.
        """
        width, back = scored.experience.response_length, order.argsort()
        attention = [scored.attention, *(outcome.attention for outcome in outcomes)]
        return cls(
            step=step,
            groups=drawn.groups,
            rewards=drawn.rewards,
            discarded=drawn.discarded,
            advantages=advantages,
            experience=scored.experience.rows(back),
            credit=None if credit is None else credit.rows(back),
            attention={int(order[row]): image for found in attention for row, image in found.items()},
            logprobs=join_rows([outcome.logprobs for outcome in outcomes], width)[back],
            entropy=join_rows([outcome.entropy for outcome in outcomes], width)[back],
            losses=join_rows([outcome.losses for outcome in outcomes], width)[back],
            metrics=metrics,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A batch after the passes before its first update."""

    experience: Experience
    """With the log-probs that the objective asks for."""
    evidence: list[Evidence]
    """Numbers per token, by piece; none where credit reads the training pass. What was read of layers is gone."""
    begun: list[Begun]
    """What credit began on each piece."""
    attention: dict[int, Float[Tensor, "response image"]]
    """Of the rollouts whose attention on the picture is kept, as far as these passes read it."""


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """A micro-batch between its forward and its backward pass."""

    rows: slice
    batch: Experience
    forward: Forward
    credit: Callable[[], CreditOutput | None]
    """Waits for the credit, if it is still being worked out."""
    shown: list[int]
    """Rollouts of the whole batch whose attention on the picture is kept."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What is left of a micro-batch after its backward pass."""

    sums: dict[str, Tensor]
    """Over its trained tokens, for the metrics."""
    logprobs: Float[Tensor, "rollout response"]
    entropy: Float[Tensor, "rollout response"]
    losses: Float[Tensor, "rollout response"]
    credit: CreditOutput | None
    attention: dict[int, Float[Tensor, "response image"]]


def loss_means(outcomes: Sequence[Outcome], totals: BatchTotals) -> dict[str, float]:
    """What micro-batches summed, as means over the global batch's trained tokens."""
    names = list(outcomes[0].sums)
    means = parallel.sums(float(sum(o.sums[name] for o in outcomes)) / totals.tokens for name in names)
    return {f"loss/{name}": mean for name, mean in zip(names, means, strict=True)}


def shown_rollouts(experience: Experience) -> list[int]:
    """The first rollout of each of the first groups."""
    return [row for row, key in enumerate(experience.keys) if key.endswith("/0")][:SHOWN_GROUPS]

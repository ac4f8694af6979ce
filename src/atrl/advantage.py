"""Rewards → one advantage per rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GroupAdvantage:
    """How much better a rollout is than the others of its group.

    ``A_i = (r_i - mean(r)) / (std(r) + epsilon)`` over the group's rewards r, with the sample standard deviation
    (n-1); GRPO: Shao et al., DeepSeekMath, arXiv 2402.03300, section 4.1.2. With ``scale="none"`` the difference is
    not divided; Dr. GRPO: Liu et al., arXiv 2503.20783, section 3.1.

    Args:
        scale: "std" or "none".
        epsilon: keeps the division finite; a group whose rewards are all equal has advantage 0 whatever it is.
    """

    scale: Literal["std", "none"] = "std"
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        if self.epsilon < 0:
            raise ValueError(f"algorithm.advantage.epsilon must be 0 or more, got {self.epsilon}: 1e-4 is usual")

    def __call__(self, rewards: Float[Tensor, "group sample"], *, seed: str = "") -> Float[Tensor, "group sample"]:
        """Advantages of every rollout; `seed` is not used by this estimator.

        Raises:
            ValueError: if a group holds a single sample: it has nothing to be compared with.
        """
        if rewards.shape[1] < 2:
            raise ValueError("rollout.group_size must be at least 2 for group advantages, got 1: set it to 8, say")
        centred = rewards - rewards.mean(dim=1, keepdim=True)
        if self.scale == "std":
            centred = centred / (rewards.std(dim=1, keepdim=True) + self.epsilon)
        # The mean of equal numbers is off by a rounding error, which the division would blow up.
        return centred.masked_fill((rewards == rewards[:, :1]).all(dim=1, keepdim=True), 0.0)


@dataclass(frozen=True, kw_only=True)
class ShuffledAdvantage(GroupAdvantage):
    """A control: the group advantages, dealt out again at random over the whole batch.

    Their distribution is unchanged but they say nothing about the rollout that carries them, so a gain that survives
    this control does not come from the reward.
    """

    def __call__(self, rewards: Float[Tensor, "group sample"], *, seed: str = "") -> Float[Tensor, "group sample"]:
        """Shuffled advantages; a function of `rewards` and `seed` alone."""
        advantages = super().__call__(rewards)
        generator = torch.Generator().manual_seed(_seed_number(seed))
        order = torch.randperm(advantages.numel(), generator=generator).to(advantages.device)
        return advantages.flatten()[order].view_as(advantages)


def _seed_number(seed: str) -> int:
    import hashlib

    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")

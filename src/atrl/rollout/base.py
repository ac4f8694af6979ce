"""What every sampler offers: responses for prompts, from weights that the trainer hands over."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from atrl.types import Prompt, Rollout, RolloutGroup

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How responses are drawn.

    Args:
        group_size: responses per prompt.
        temperature: of the softmax; 0 is greedy. The trainer divides its logits by the same number.
        max_response_tokens: a response is cut after so many tokens.
    """

    group_size: int
    temperature: float = 1.0
    max_response_tokens: int = 64

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"rollout.group_size must be at least 1, got {self.group_size}")
        if self.temperature < 0:
            raise ValueError(f"rollout.temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.max_response_tokens < 1:
            raise ValueError(f"rollout.max_response_tokens must be at least 1, got {self.max_response_tokens}")


@dataclass(frozen=True, kw_only=True)
class ModelHandle:
    """What a sampler needs to know of the policy to start.

    Args:
        folder: a complete checkpoint: configuration, weights, tokenizer, processor.
        model: the live policy, which the transformers sampler generates with directly.
        tokenizer: of the policy.
        banned_ids: tokens that must never be sampled (image and video placeholders and their like).
        max_prompt_tokens: the longest prompt, in expanded tokens, that will be asked for.
        max_response_tokens: the longest response.
        max_images: the most pictures in one prompt.
        turn_end_ids: tokens that close an answer in the chat template.
    """

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    banned_ids: tuple[int, ...]
    max_prompt_tokens: int
    max_response_tokens: int
    max_images: int
    turn_end_ids: tuple[int, ...] = ()


class Sampler(Protocol):
    """Draws responses. `start` comes first, `close` last; `update_weights` after every optimizer step."""

    name: str

    def check(self, model_type: str) -> None:
        """Raise ValueError, in one line, for what can be seen to be missing before a model of `model_type` loads."""
        ...

    def start(self, handle: ModelHandle) -> None:
        """Make ready; leaves the global random state and the number of torch threads as they were."""
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: str) -> list[RolloutGroup]:
        """`group_size` responses to every prompt, in order; the same for the same weights, prompts and `seed`."""
        ...

    def update_weights(self, parameters: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take over the policy's parameters, named as in the transformers model; later rollouts carry `version`."""
        ...

    def close(self) -> None:
        """Free everything; a sampler that never started can be closed too."""
        ...


def request_seed(seed: str, key: str) -> int:
    """A 31-bit seed for one prompt's responses: a function of run seed, step (both in `seed`) and prompt alone."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def check_rollout(rollout: Rollout, prompt: Prompt, banned_ids: Sequence[int]) -> Rollout:
    """`rollout` itself, once it is certain that it can be trained on."""
    banned = set(banned_ids).intersection(rollout.token_ids)
    assert not banned, f"problem {prompt.problem.id}: the sampler returned banned token ids {sorted(banned)}"
    assert len(rollout.token_ids) == len(rollout.logprobs), (
        f"problem {prompt.problem.id}: {len(rollout.token_ids)} tokens but {len(rollout.logprobs)} log-probs"
    )
    assert rollout.token_ids, f"problem {prompt.problem.id}: the sampler returned an empty response"
    return rollout

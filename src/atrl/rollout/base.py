"""What every sampler offers: responses for prompts, from weights that the trainer hands over."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from atrl.rollout.truncation import check_truncation
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
        top_k: draw among the likeliest so many tokens; None is all.
        top_p: draw among the likeliest tokens that together have this probability; 1 is all.
        min_p: draw among tokens that are at least so many times as likely as the likeliest; 0 is all.
        separate_groups: generate one prompt's responses at a time, with nothing left of the others', so that no bit of
            them depends on the company that the prompt is in.
    """

    group_size: int
    temperature: float = 1.0
    max_response_tokens: int = 64
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    separate_groups: bool = False

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"rollout.group_size must be at least 1, got {self.group_size}")
        if self.temperature < 0:
            raise ValueError(f"rollout.temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.max_response_tokens < 1:
            raise ValueError(f"rollout.max_response_tokens must be at least 1, got {self.max_response_tokens}")
        check_truncation(top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)
        if self.truncates and not self.temperature:
            raise ValueError("rollout.temperature=0 is greedy and takes no rollout.top_k, top_p or min_p: drop them")

    @property
    def truncates(self) -> bool:
        """Whether tokens are left out that are not banned."""
        return self.top_k is not None or self.top_p < 1 or self.min_p > 0


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
        max_videos: the most videos in one prompt.
        turn_end_ids: tokens that close an answer in the chat template.
        resizing: keyword arguments by which a processor resizes pictures as the trainer's does, by kind of media.
        training_bytes: what training the policy will hold of the GPU beside an engine; 0 where it isn't trained.
    """

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    banned_ids: tuple[int, ...]
    max_prompt_tokens: int
    max_response_tokens: int
    max_images: int
    max_videos: int = 0
    turn_end_ids: tuple[int, ...] = ()
    resizing: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    training_bytes: int = 0


KeptKnown = Literal["always", "within top_k", "never"]
"""When a sampler's rollouts hold the tokens that top-k, top-p and min-p left."""


class ResponseSource(Protocol):
    """Draws responses. `start` comes first, `close` last; `rest` before an update, `update_weights` after it."""

    @property
    def name(self) -> str:
        """The value of `rollout` that chooses it."""
        ...

    def start(self, handle: ModelHandle) -> None:
        """Make ready; leaves the global random state and the number of torch threads as they were."""
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: str) -> list[RolloutGroup]:
        """`group_size` responses to every prompt, in order; the same for the same weights, prompts and `seed`.

        All ranks call together, and one may have no prompts.
        """
        ...

    def rest(self) -> None:
        """Nothing will be asked for until the next `update_weights`: memory may be given back."""
        ...

    def update_weights(self, parameters: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take over the policy's parameters, named as in the transformers model; later rollouts carry `version`."""
        ...

    def close(self) -> None:
        """Free everything; a sampler that never started can be closed too."""
        ...


class Sampler(ResponseSource, Protocol):
    """What a config chooses as `rollout.sampler`: it also says what it can do, before anything starts."""

    takes_videos: bool
    says_what_it_keeps: KeptKnown
    separates_groups: bool
    """Whether it heeds `Sampling.separate_groups`."""

    def check(self, model_type: str) -> None:
        """Raise ValueError, in one line, for what can be seen to be missing before a model of `model_type` loads."""
        ...


def request_seed(seed: str, key: str) -> int:
    """A 31-bit seed for one prompt's responses: a function of run seed, step (both in `seed`) and prompt alone."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def check_prompt(prompt: Prompt, ids: Sequence[int], by: str) -> None:
    """Raises ValueError, in one line, unless `by` (an engine, a server) made exactly the trainer's prompt."""
    if list(ids) == prompt.token_ids:
        return
    both = zip(ids, prompt.token_ids, strict=False)
    same = min(len(ids), len(prompt.token_ids))
    place = next((place for place, (there, here) in enumerate(both) if there != here), same)
    raise ValueError(
        f"problem {prompt.problem.id}: {by} expands the prompt to {len(ids)} tokens and the trainer's processor to "
        f"{len(prompt.token_ids)}, and they differ from token {place} on: it must have the checkpoint whose processor "
        "made the prompt"
    )


def check_rollout(rollout: Rollout, prompt: Prompt, banned_ids: Sequence[int]) -> Rollout:
    """`rollout` itself, once it is certain that it can be trained on."""
    banned = set(banned_ids).intersection(rollout.token_ids)
    assert not banned, f"problem {prompt.problem.id}: the sampler returned banned token ids {sorted(banned)}"
    assert len(rollout.token_ids) == len(rollout.logprobs), (
        f"problem {prompt.problem.id}: {len(rollout.token_ids)} tokens but {len(rollout.logprobs)} log-probs"
    )
    assert rollout.token_ids, f"problem {prompt.problem.id}: the sampler returned an empty response"
    assert rollout.kept is None or _drawn_from_kept(rollout), (
        f"problem {prompt.problem.id}: the sampler returned a token that its top-k, top-p or min-p leaves out"
    )
    return rollout


def _drawn_from_kept(rollout: Rollout) -> bool:
    import torch

    counts = rollout.kept.counts
    if len(counts) != len(rollout.token_ids):
        return False
    drawn = torch.tensor(rollout.token_ids).repeat_interleave(counts) == rollout.kept.ids
    return int(drawn.sum()) == len(rollout.token_ids)

"""What travels between the nine stages of a training step: one small value type a stage.

A step never edits one of these; each stage returns a new value (see `module.py`).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from PIL.Image import Image
    from torch import Tensor

CreditOn = Literal["all", "positive", "negative"]
"""Rollouts by the sign of their advantage."""


class Status(StrEnum):
    """What became of a rollout, whatever its reward."""

    RIGHT = "right"
    WRONG = "wrong"
    UNPARSEABLE = "unparseable"  # ended by itself, but no answer could be read from it
    TRUNCATED = "truncated"  # hit the token limit before it ended


@dataclass(frozen=True, slots=True)
class ReadingRule:
    """Which characters of a response were read off the picture or video: the groups of the first `count` matches.

    Only problems whose generator knows this carry a rule; it serves to measure anchors, never to train on.
    """

    pattern: str
    count: int

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Character ranges ``[start, end)`` of every group of the first `count` matches in `text`."""
        matches = list(re.finditer(self.pattern, text))[: self.count]
        return [match.span(group) for match in matches for group in range(1, match.re.groups + 1)]


@dataclass(frozen=True, slots=True)
class Video:
    """A video: a file, the bytes of one, or its frames in order, evenly spaced.

    Raises:
        ValueError: if frames come without a rate above 0, by which alone it is known when each was.
    """

    source: Path | bytes | tuple[Path | Image, ...]
    fps: float | None = None
    """Frames per second of a list of frames; a file knows its own."""

    def __post_init__(self) -> None:
        if isinstance(self.source, tuple) and not (self.fps and 0 < self.fps < float("inf")):
            raise ValueError(f"a video of frames needs their rate in frames per second, above 0, got {self.fps}")


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """What is shown of a video: frames chosen from it, and which ones they are."""

    images: tuple[Image, ...]
    """In RGB, all of one size."""
    indices: tuple[int, ...]
    """[frame] its number in the video, from 0."""
    timestamps: tuple[float, ...]
    """[frame] in seconds from the video's first frame."""
    total: int
    """Frames of the whole video."""
    fps: float
    """Frames per second of the whole video, on average."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Something said before the question, by whom."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A question about pictures and videos with a verifiable answer.

    The texts of `history` and then `question` hold one ``<image>`` mark for each entry of `images` and one ``<video>``
    mark for each of `videos`, each kind in its order and the two mixed at will. `images` are files (opened when needed,
    so that a data set of any size fits in memory) or pictures already in memory; so are `videos`, whose frames may also
    have been chosen already.
    """

    id: str
    question: str
    answer: str
    images: tuple[Path | Image, ...] = ()
    videos: tuple[Video | Frames, ...] = ()
    target: str | None = None  # a worked answer for supervised warm-up
    reading: ReadingRule | None = None
    history: tuple[Turn, ...] = ()
    """A conversation that the question goes on with; its answers are part of the prompt and never trained on."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A problem as the model sees it; pictures and videos are pre-processed once and shared by the whole group."""

    problem: Problem
    token_ids: list[int]
    """[prompt] with every placeholder repeated once per image or video token."""
    pixels: dict[str, Tensor]
    """The processor's tensors of its pictures and videos. Qwen: ``pixel_values`` [patches, dim], ``image_grid_thw``
    [images, 3]; for videos ``pixel_values_videos`` [patches, dim], ``video_grid_thw`` [videos, 3] and, with Qwen2.5-VL,
    ``second_per_grid_ts`` [videos], the seconds from one temporal patch of a video to the next. Others:
    ``pixel_values`` [tiles, channels, height, width]."""
    images: tuple[Image, ...]
    engine_token_ids: list[int]
    """[shorter prompt] with one placeholder per picture or video, as an inference engine wants it."""
    videos: tuple[Frames, ...] = ()
    epoch: int = 0
    """Which pass over the data it belongs to: tells apart the visits of one problem, also within a batch."""
    place: int = 0
    """Where it stands in the stream of all passes over the data; finds it again (`PromptLoader.again`)."""

    @property
    def key(self) -> str:
        """Names this visit of the problem; seeds are derived from it."""
        return f"{self.problem.id}/{self.epoch}"


@dataclass(frozen=True, slots=True, eq=False)
class KeptTokens:
    """Which tokens a truncated sampler (top-k, top-p, min-p) could have drawn at each token of a response."""

    ids: Int[Tensor, "kept"]
    """int32, those of one token after those of the other."""
    counts: Int[Tensor, "response"]
    """int32, how many there are of each."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response: exactly the ids that the sampler returned, its end-of-turn token included."""

    token_ids: list[int]
    """[response]"""
    logprobs: list[float]
    """[response] log-probability of each token under the distribution that it was sampled from."""
    finished: bool
    """Whether the model ended the response itself; otherwise the token limit cut it."""
    kept: KeptTokens | None = None
    """What could have been drawn; None where nothing but the banned tokens was left out."""


@dataclass(frozen=True, slots=True, eq=False)
class RolloutGroup:
    """All responses to one prompt, sampled by one version of the policy."""

    prompt: Prompt
    rollouts: list[Rollout]
    texts: list[str]
    """[group size] the responses decoded, special tokens left out."""
    policy_version: int


@dataclass(frozen=True, slots=True)
class Reward:
    """The verdict on one rollout: the weighted sum, its unweighted parts and the status."""

    total: float
    parts: dict[str, float]
    status: Status


@dataclass(frozen=True, slots=True, eq=False)
class Experience:
    """A batch of rollouts as tensors: prompts padded on the left, responses on the right.

    Every response so starts at the same column, ``prompt = tokens - response``.
    """

    input_ids: Int[Tensor, "rollout tokens"]
    attention_mask: Int[Tensor, "rollout tokens"]
    response_mask: Bool[Tensor, "rollout response"]
    """True on the tokens that are trained."""
    pixels: list[dict[str, Tensor]]
    """[rollout] the processor's tensors, one shared dict per group."""
    sampler_logprobs: Float[Tensor, "rollout response"]
    keys: list[str] = field(default_factory=list)
    """[rollout] names each rollout by step, problem and sample, whatever the batch is cut into: seeds come from it."""
    masked_pixels: list[dict[str, Tensor]] | None = None
    """[rollout] `pixels` with parts blacked out, where a credit scheme asks for them."""
    reading: Bool[Tensor, "rollout response"] | None = None
    """Which tokens spell out what was read off the picture, where the data knows; to measure, never to train on (the
    scheme `oracle` apart)."""
    paragraphs: Int[Tensor, "rollout response"] | None = None
    """The number of each token's paragraph in its response, from 0, and -1 on padding; where a credit scheme asks."""
    old_logprobs: Float[Tensor, "rollout response"] | None = None
    """Under the policy before this batch's updates; None when one update makes them the current ones."""
    reference_logprobs: Float[Tensor, "rollout response"] | None = None
    kept: list[KeptTokens] | None = None
    """[rollout] the tokens that sampling was restricted to, and so log-probs are; None where it was not."""
    pictures_somewhere: bool = True
    """Whether any rank's batch has a picture: then a sharded vision tower must run on all ranks."""

    @property
    def size(self) -> int:
        """How many rollouts the batch holds."""
        return self.input_ids.shape[0]

    @property
    def response_length(self) -> int:
        """Columns of the (padded) responses."""
        return self.response_mask.shape[1]

    @property
    def prompt_length(self) -> int:
        """Columns of the (padded) prompts: where every response starts."""
        return self.input_ids.shape[1] - self.response_length

    def rows(self, index: slice | Int[Tensor, "chosen"]) -> Experience:
        """The rollouts of `index`, padding kept, so that results do not depend on the micro-batch."""

        def chosen(values: list) -> list:
            return values[index] if isinstance(index, slice) else [values[row] for row in index.tolist()]

        return Experience(
            input_ids=self.input_ids[index],
            attention_mask=self.attention_mask[index],
            response_mask=self.response_mask[index],
            pixels=chosen(self.pixels),
            sampler_logprobs=self.sampler_logprobs[index],
            keys=chosen(self.keys),
            masked_pixels=None if self.masked_pixels is None else chosen(self.masked_pixels),
            reading=None if self.reading is None else self.reading[index],
            paragraphs=None if self.paragraphs is None else self.paragraphs[index],
            old_logprobs=None if self.old_logprobs is None else self.old_logprobs[index],
            reference_logprobs=None if self.reference_logprobs is None else self.reference_logprobs[index],
            kept=None if self.kept is None else chosen(self.kept),
            pictures_somewhere=self.pictures_somewhere,
        )


@dataclass(frozen=True, slots=True, eq=False)
class MaskedView:
    """What the policy says of the same responses when parts of their pictures are blacked out."""

    logprobs: Float[Tensor, "rollout response"]
    """Of the sampled tokens, 0 on padding; with a gradient where the scheme's auxiliary loss needs one."""
    divergence: Float[Tensor, "rollout response"]
    """KL(policy with the picture ‖ policy with the masked picture) over the vocabulary, in nats; no gradient."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the policy's forward passes showed of a batch: all that a credit scheme may look at."""

    logprobs: Float[Tensor, "rollout response"]
    """Of the sampled tokens; 0 on padding, no gradient."""
    entropy: Float[Tensor, "rollout response"]
    """Of the distribution that each token was sampled from, in nats; 0 on padding."""
    read: Mapping[Hashable, Any]
    """By request (`CreditScheme.requests`): what its reader found on the way through the layers."""
    masked: MaskedView | None = None
    """Only where the scheme names a `picture_mask`."""


@dataclass(frozen=True, slots=True, eq=False)
class CreditOutput:
    """What a credit scheme returns; the invariants (>= 0, mean 1 over trained tokens, no gradient) bind `weights`."""

    weights: Float[Tensor, "rollout response"]
    anchors: Bool[Tensor, "rollout response"] | None = None
    """The tokens that the scheme singled out, for metrics and the report."""
    density: Float[Tensor, "rollout response"] | None = None
    """The score by which the scheme ranks tokens (connectivity density, entropy, …), where it has one."""
    trajectory_scale: Float[Tensor, "rollout"] | None = None
    """A factor on the whole rollout's advantage; None is 1."""

    def rows(self, index: slice | Int[Tensor, "chosen"], width: int | None = None) -> CreditOutput:
        """The rollouts of `index`, with the first `width` columns where one is given."""
        return CreditOutput(
            weights=self.weights[index, :width],
            anchors=None if self.anchors is None else self.anchors[index, :width],
            density=None if self.density is None else self.density[index, :width],
            trajectory_scale=None if self.trajectory_scale is None else self.trajectory_scale[index],
        )

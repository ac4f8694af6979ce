"""Problems made ready for a model: chat template, placeholders, pre-processed pictures and videos."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atrl.data.frames import FrameSampler, frame_array, frame_metadata
from atrl.data.images import open_image
from atrl.data.templates import feature_token_id, missing_bos, placeholder, placeholder_id, render, special_tokens
from atrl.data.videos import sample_video
from atrl.types import Frames, Problem, Prompt, Turn

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from transformers import BatchFeature, ProcessorMixin

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"
_MARKS = re.compile(f"({IMAGE_MARK}|{VIDEO_MARK})")
SHORTEN = "raise the limit, lower the model's image size, or show fewer frames of a video (rollout.video_frames)"
_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""What a processor returns of the text; all else belongs to pictures and videos."""


@dataclass(frozen=True, kw_only=True)
class PromptBuilder:
    """Turns a problem into a prompt; pictures and videos are pre-processed here, once, for trainer and all samples.

    Args:
        processor: of the policy.
        instruction: appended to every question, for instance how to mark the answer.
        max_prompt_tokens: a prompt that is longer, image and video tokens included, is dropped and never cut: a cut
            could go through the middle of a picture.
        frames: which frames of a video are shown.
    """

    processor: ProcessorMixin
    instruction: str = ""
    max_prompt_tokens: int = 1024
    frames: FrameSampler = field(default_factory=FrameSampler)

    def build(self, problem: Problem) -> Prompt:
        """The prompt of `problem`, of any length.

        The chat template's text is tokenised here and never again: sampler and trainer get ids.

        Raises:
            ValueError: if the marks in the texts differ in number from the pictures or videos, one of these can't be
                read, the text spells out one of the model's control tokens, the chat template doesn't admit the
                conversation, or the model takes no videos.
        """
        text = self._chat_text(problem)
        images = tuple(open_image(image, problem_id=problem.id) for image in problem.images)
        videos = tuple(sample_video(video, self.frames, problem_id=problem.id) for video in problem.videos)
        tokenizer, first = self.processor.tokenizer, missing_bos(self.processor.tokenizer, text)
        inputs = self._process(problem.id, text, images, videos)
        prompt = Prompt(
            problem=problem,
            token_ids=first + inputs["input_ids"][0].tolist(),
            pixels={name: inputs[name] for name in inputs if name not in _PER_TOKEN},
            images=images,
            videos=videos,
            engine_token_ids=first + tokenizer(text, add_special_tokens=False)["input_ids"],
        )
        self._check_placeholders(prompt)
        return prompt

    def _process(self, problem_id: str, text: str, images: Sequence[Image], videos: Sequence[Frames]) -> BatchFeature:
        """The processor's tensors; it must not choose among the frames again."""
        media: dict[str, Any] = {"images": list(images)} if images else {}
        if videos:
            metadata = [frame_metadata(frames) for frames in videos]
            media["videos"] = [frame_array(frames) for frames in videos]
            media["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": metadata}
        try:
            return self.processor(text=[text], return_tensors="pt", add_special_tokens=False, **media)
        except ValueError as error:  # a shape that the model can't take
            reason = " ".join(str(error).split())
            raise ValueError(
                f"problem {problem_id}: the model's processor refuses it: {reason}; change its pictures or videos, or "
                "leave the problem out"
            ) from error

    def build_all(self, problems: Iterable[Problem]) -> PromptBatch:
        """The prompts that fit, and the ids of the problems that do not."""
        batch = PromptBatch()
        for problem in problems:
            prompt = self.build(problem)
            if len(prompt.token_ids) > self.max_prompt_tokens:
                batch.dropped.append(problem.id)
                batch.lengths.append(len(prompt.token_ids))
            else:
                batch.prompts.append(prompt)
        return batch

    def build_held_out(self, problems: Sequence[Problem], split: str) -> PromptBatch:
        """`build_all` for problems of `split`, by which a policy is scored.

        Raises:
            ValueError: if none fits.
        """
        batch = self.build_all(problems)
        if problems and not batch.prompts:
            raise ValueError(
                f"no problem of the {split} split fits into rollout.max_prompt_tokens={self.max_prompt_tokens}, the "
                f"shortest has {min(batch.lengths)} tokens: {SHORTEN}"
            )
        return batch

    def _chat_text(self, problem: Problem) -> str:
        turns = [*problem.history, Turn("user", problem.question)]
        for mark, kind, media in ((IMAGE_MARK, "image", problem.images), (VIDEO_MARK, "video", problem.videos)):
            if (marks := marks_of(problem).count(mark)) != len(media):
                raise ValueError(
                    f"problem {problem.id}: {marks} {mark} marks for {len(media)} {kind}s; give the question one mark "
                    f"per {kind}"
                )
        if self.instruction:
            turns[-1] = Turn("user", f"{problem.question.rstrip()} {self.instruction}")
        messages = [self._message(problem.id, turn) for turn in turns]
        try:
            return render(self.processor, messages)
        except Exception as error:  # templates are programs, and refuse what they don't know
            raise ValueError(
                f"problem {problem.id}: the chat template does not admit its turns "
                f"({', '.join(turn.role for turn in turns)}): {' '.join(str(error).split())}"
            ) from error

    def _message(self, problem_id: str, turn: Turn) -> dict[str, Any]:
        pieces, kinds = _MARKS.split(turn.text), {IMAGE_MARK: "image", VIDEO_MARK: "video"}
        self._check_text(problem_id, [piece for piece in pieces if piece not in kinds])
        content = [
            {"type": kinds[piece]} if piece in kinds else {"type": "text", "text": piece} for piece in pieces if piece
        ]
        return {"role": turn.role, "content": content}

    def _check_text(self, problem_id: str, pieces: Sequence[str]) -> None:
        placeholders = [token for kind in ("image", "video") if (token := placeholder(self.processor, kind))]
        for token in (*special_tokens(self.processor.tokenizer), *placeholders):
            if any(token in piece for piece in pieces):
                raise ValueError(
                    f"problem {problem_id}: its text contains {token!r}, which the model would take for a control "
                    "token and not for text: remove it, or leave the problem out"
                )

    def _check_placeholders(self, prompt: Prompt) -> None:
        processor, things = self.processor, {"image": "pictures", "video": "videos"}
        tokens = {"image": (placeholder_id(processor, "image"), feature_token_id(processor))}
        if prompt.videos:
            video = placeholder_id(processor, "video")
            tokens["video"] = (video, video)
        for kind, (mark, feature) in tokens.items():
            marks, wanted = prompt.engine_token_ids.count(mark), len(getattr(prompt, f"{kind}s"))
            if marks != wanted:
                raise ValueError(
                    f"problem {prompt.problem.id}: the chat template leaves {marks} of its {wanted} {things[kind]} "
                    "in the prompt: put them where the template takes them, usually into the first question"
                )
            placeholders = prompt.token_ids.count(feature)
            features = self._features(kind, prompt.pixels, placeholders)
            if placeholders != features:
                raise ValueError(
                    f"problem {prompt.problem.id}: the prompt holds {placeholders} {kind} tokens but its "
                    f"{things[kind]} give {features} features; does the processor come from the same checkpoint as "
                    "the model?"
                )

    def _features(self, kind: str, pixels: Mapping[str, Tensor], placeholders: int) -> int:
        """Tokens that the pictures or videos give: by their grid of patches, else as many for each tile of one size."""
        grid, tiles = pixels.get(f"{kind}_grid_thw"), pixels.get("pixel_values")
        if grid is not None:
            return int(grid.prod(dim=1).sum()) // getattr(self.processor, f"{kind}_processor").merge_size ** 2
        if tiles is None:
            return 0
        return max(1, placeholders // len(tiles)) * len(tiles)


@dataclass(slots=True)
class PromptBatch:
    """Prompts that fit, and what was dropped because it did not."""

    prompts: list[Prompt] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Tokens of each that was dropped."""


def resizing(processor: ProcessorMixin) -> dict[str, dict[str, dict[str, int]]]:
    """Keyword arguments that make another processor of the same class resize pictures as `processor` does.

    Empty where pictures aren't resized to a number of pixels; Qwen-VL keeps those limits as edges of a `size`.
    """
    pictures = processor.image_processor
    if not hasattr(pictures, "merge_size"):
        return {}
    return {"images_kwargs": {"size": {edge: pictures.size[edge] for edge in ("shortest_edge", "longest_edge")}}}


def marks_of(problem: Problem) -> list[str]:
    """The marks of the problem's pictures and videos, in the order of the prompt."""
    texts = [turn.text for turn in problem.history] + [problem.question]
    return [mark for text in texts for mark in _MARKS.findall(text)]

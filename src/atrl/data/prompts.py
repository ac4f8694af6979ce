"""Problems made ready for a model: chat template, placeholders, pre-processed pictures and videos."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atrl.data.frames import FrameSampler, frame_array, frame_metadata
from atrl.data.images import open_image
from atrl.data.videos import sample_video
from atrl.types import Frames, Problem, Prompt

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BatchFeature, ProcessorMixin

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"
MARKS = re.compile(f"({IMAGE_MARK}|{VIDEO_MARK})")
_PIXELS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")


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

        Raises:
            ValueError: if the marks in the question differ in number from the pictures or videos, one of these can't
                be read, or the text spells out one of the model's control tokens.
        """
        text = self._chat_text(problem)
        images = tuple(open_image(image, problem_id=problem.id) for image in problem.images)
        videos = tuple(sample_video(video, self.frames, problem_id=problem.id) for video in problem.videos)
        inputs = self._process(problem.id, text, images, videos)
        prompt = Prompt(
            problem=problem,
            token_ids=inputs["input_ids"][0].tolist(),
            pixels={name: inputs[name] for name in _PIXELS if name in inputs},
            images=images,
            videos=videos,
            engine_token_ids=self.processor.tokenizer(text, add_special_tokens=False)["input_ids"],
        )
        self._check_placeholders(prompt)
        return prompt

    def _process(self, problem_id: str, text: str, images: Sequence[Image], videos: Sequence[Frames]) -> BatchFeature:
        """The processor's tensors; it must not choose among the frames again."""
        media = {"images": list(images)} if images else {}
        if videos:
            metadata = [frame_metadata(frames) for frames in videos]
            media["videos"] = [frame_array(frames) for frames in videos]
            media["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": metadata}
        try:
            return self.processor(text=[text], return_tensors="pt", **media)
        except ValueError as error:  # a shape that the model can't take
            raise ValueError(f"problem {problem_id}: the model's processor refuses it: {error}") from error

    def build_all(self, problems: Iterable[Problem]) -> PromptBatch:
        """The prompts that fit, and the ids of the problems that do not."""
        batch = PromptBatch()
        for problem in problems:
            prompt = self.build(problem)
            if len(prompt.token_ids) > self.max_prompt_tokens:
                batch.dropped.append(problem.id)
            else:
                batch.prompts.append(prompt)
        return batch

    def _chat_text(self, problem: Problem) -> str:
        for mark, kind, media in ((IMAGE_MARK, "image", problem.images), (VIDEO_MARK, "video", problem.videos)):
            if (marks := problem.question.count(mark)) != len(media):
                raise ValueError(
                    f"problem {problem.id}: {marks} {mark} marks for {len(media)} {kind}s; give the question one mark "
                    f"per {kind}"
                )
        *pieces, last = MARKS.split(problem.question)
        pieces.append(f"{last.rstrip()} {self.instruction}" if self.instruction else last)
        self._check_text(problem.id, pieces)
        kinds = {IMAGE_MARK: "image", VIDEO_MARK: "video"}
        content = [
            {"type": kinds[piece]} if piece in kinds else {"type": "text", "text": piece} for piece in pieces if piece
        ]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def _check_text(self, problem_id: str, pieces: Sequence[str]) -> None:
        tokenizer = self.processor.tokenizer
        placeholders = [getattr(self.processor, name, None) for name in ("image_token", "video_token")]
        for token in (*tokenizer.all_special_tokens, *filter(None, placeholders)):
            if any(token in piece for piece in pieces):
                raise ValueError(
                    f"problem {problem_id}: its text contains {token!r}, which the model would take for a control "
                    "token and not for text: remove it, or leave the problem out"
                )

    def _check_placeholders(self, prompt: Prompt) -> None:
        for kind, things in (("image", "pictures"), ("video", "videos")):
            grid = prompt.pixels.get(f"{kind}_grid_thw")
            if grid is None and kind == "video":
                continue
            merged = getattr(self.processor, f"{kind}_processor").merge_size ** 2
            features = 0 if grid is None else int(grid.prod(dim=1).sum()) // merged
            placeholders = prompt.token_ids.count(getattr(self.processor, f"{kind}_token_id"))
            if placeholders != features:
                raise ValueError(
                    f"problem {prompt.problem.id}: the prompt holds {placeholders} {kind} tokens but its {things} give "
                    f"{features} features; does the processor come from the same checkpoint as the model?"
                )


@dataclass(slots=True)
class PromptBatch:
    """Prompts that fit, and what was dropped because it did not."""

    prompts: list[Prompt] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


def banned_token_ids(processor: ProcessorMixin) -> tuple[int, ...]:
    """Ids that no response may contain: placeholders and boundaries of pictures and videos, if the model has them."""
    tokenizer = processor.tokenizer
    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
    extra: Sequence[str] = [getattr(processor, name, None) for name in ("image_token", "video_token")]
    known = tokenizer.get_vocab()
    return tuple(sorted({known[name] for name in (*names, *extra) if name in known}))

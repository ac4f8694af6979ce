"""Problems made ready for a model: chat template, image placeholders, pre-processed pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atrl.data.images import open_image
from atrl.types import Problem, Prompt

if TYPE_CHECKING:
    from transformers import ProcessorMixin

IMAGE_MARK = "<image>"


@dataclass(frozen=True, kw_only=True)
class PromptBuilder:
    """Turns a problem into a prompt; a picture is pre-processed here, once, for trainer and all samples alike.

    Args:
        processor: of the policy.
        instruction: appended to every question, for instance how to mark the answer.
        max_prompt_tokens: a prompt that is longer, image tokens included, is dropped and never cut: a cut could go
            through the middle of a picture.
    """

    processor: ProcessorMixin
    instruction: str = ""
    max_prompt_tokens: int = 1024

    def build(self, problem: Problem) -> Prompt:
        """The prompt of `problem`, of any length.

        Raises:
            ValueError: if the marks in the question and the pictures differ in number, a picture can't be read, or
                the text spells out one of the model's control tokens.
        """
        images = tuple(open_image(image, problem_id=problem.id) for image in problem.images)
        text = self._chat_text(problem)
        inputs = self.processor(text=[text], images=list(images) or None, return_tensors="pt")
        pixels = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
        prompt = Prompt(
            problem=problem,
            token_ids=inputs["input_ids"][0].tolist(),
            pixels=pixels,
            images=images,
            engine_token_ids=self.processor.tokenizer(text, add_special_tokens=False)["input_ids"],
        )
        self._check_placeholders(prompt)
        return prompt

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
        pieces = problem.question.split(IMAGE_MARK)
        if len(pieces) - 1 != len(problem.images):
            raise ValueError(
                f"problem {problem.id}: {len(pieces) - 1} {IMAGE_MARK} marks for {len(problem.images)} images; "
                "give the question one mark per image"
            )
        if self.instruction:
            pieces[-1] = f"{pieces[-1].rstrip()} {self.instruction}"
        self._check_text(problem.id, pieces)
        content: list[dict[str, str]] = []
        for index, piece in enumerate(pieces):
            content += [{"type": "image"}] * (index > 0)
            content += [{"type": "text", "text": piece}] * bool(piece)
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def _check_text(self, problem_id: str, pieces: Sequence[str]) -> None:
        tokenizer = self.processor.tokenizer
        for token in (*tokenizer.all_special_tokens, self.processor.image_token):
            if any(token in piece for piece in pieces):
                raise ValueError(
                    f"problem {problem_id}: its text contains {token!r}, which the model would take for a control "
                    "token and not for text: remove it, or leave the problem out"
                )

    def _check_placeholders(self, prompt: Prompt) -> None:
        grid = prompt.pixels.get("image_grid_thw")
        features = 0 if grid is None else int(grid.prod(dim=1).sum()) // self.processor.image_processor.merge_size**2
        placeholders = prompt.token_ids.count(self.processor.image_token_id)
        if placeholders != features:
            raise ValueError(
                f"problem {prompt.problem.id}: the prompt holds {placeholders} image tokens but its pictures give "
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


def pixel_limits(processor: ProcessorMixin) -> dict[str, dict[str, dict[str, int]]]:
    """Keyword arguments that make another processor of the same class resize pictures as `processor` does.

    Empty where pictures aren't resized to a number of pixels; Qwen-VL keeps those limits as edges of a `size`.
    """
    pictures = processor.image_processor
    if not hasattr(pictures, "merge_size"):
        return {}
    return {"images_kwargs": {"size": {edge: pictures.size[edge] for edge in ("shortest_edge", "longest_edge")}}}

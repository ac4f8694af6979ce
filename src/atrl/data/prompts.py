"""Problems made ready for a model: chat template, image placeholders, pre-processed pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atrl.data.images import open_image
from atrl.data.templates import feature_token_id, missing_bos, render, special_tokens
from atrl.types import Problem, Prompt, Turn

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import ProcessorMixin

IMAGE_MARK = "<image>"
_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""What a processor returns of the text; all else belongs to pictures."""


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

        The chat template's text is tokenised here and never again: sampler and trainer get ids.

        Raises:
            ValueError: if the marks in the texts and the pictures differ in number, a picture can't be read, the text
                spells out one of the model's control tokens, or the chat template doesn't admit the conversation.
        """
        images = tuple(open_image(image, problem_id=problem.id) for image in problem.images)
        text = self._chat_text(problem)
        tokenizer, first = self.processor.tokenizer, missing_bos(self.processor.tokenizer, text)
        inputs = self.processor(text=[text], images=list(images) or None, return_tensors="pt", add_special_tokens=False)
        prompt = Prompt(
            problem=problem,
            token_ids=first + inputs["input_ids"][0].tolist(),
            pixels={name: inputs[name] for name in inputs if name not in _PER_TOKEN},
            images=images,
            engine_token_ids=first + tokenizer(text, add_special_tokens=False)["input_ids"],
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
        turns = [*problem.history, Turn("user", problem.question)]
        marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
        if marks != len(problem.images):
            raise ValueError(
                f"problem {problem.id}: {marks} {IMAGE_MARK} marks for {len(problem.images)} images; give the question "
                "one mark per image"
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
        pieces = turn.text.split(IMAGE_MARK)
        self._check_text(problem_id, pieces)
        content: list[dict[str, str]] = []
        for index, piece in enumerate(pieces):
            content += [{"type": "image"}] * (index > 0)
            content += [{"type": "text", "text": piece}] * bool(piece)
        return {"role": turn.role, "content": content}

    def _check_text(self, problem_id: str, pieces: Sequence[str]) -> None:
        for token in (*special_tokens(self.processor.tokenizer), self.processor.image_token):
            if any(token in piece for piece in pieces):
                raise ValueError(
                    f"problem {problem_id}: its text contains {token!r}, which the model would take for a control "
                    "token and not for text: remove it, or leave the problem out"
                )

    def _check_placeholders(self, prompt: Prompt) -> None:
        marks = prompt.engine_token_ids.count(self.processor.image_token_id)
        if marks != len(prompt.images):
            raise ValueError(
                f"problem {prompt.problem.id}: the chat template leaves {marks} of its {len(prompt.images)} pictures "
                "in the prompt: put them where the template takes them, usually into the first question"
            )
        placeholders = prompt.token_ids.count(feature_token_id(self.processor))
        features = self._features(prompt.pixels, placeholders)
        if placeholders != features:
            raise ValueError(
                f"problem {prompt.problem.id}: the prompt holds {placeholders} image tokens but its pictures give "
                f"{features} features; does the processor come from the same checkpoint as the model?"
            )

    def _features(self, pixels: Mapping[str, Tensor], placeholders: int) -> int:
        """Image tokens that the pictures give: by their grid of patches, else as many for each tile of equal size."""
        grid, tiles = pixels.get("image_grid_thw"), pixels.get("pixel_values")
        if grid is not None:
            return int(grid.prod(dim=1).sum()) // self.processor.image_processor.merge_size**2
        if tiles is None:
            return 0
        return max(1, placeholders // len(tiles)) * len(tiles)


@dataclass(slots=True)
class PromptBatch:
    """Prompts that fit, and what was dropped because it did not."""

    prompts: list[Prompt] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

"""What a processor says of its model's language: chat template, marks of pictures, ends of turns, padding.

Nothing here knows a family by name. What can't be found out, or would silently spoil prompts, is refused by
`check_processor` before a model loads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

_VISUAL = re.compile(r"image|img|vision|video|boi_|eoi_|audio", re.IGNORECASE)
"""In the name of a token's role, or in the text of a special token: it stands for media, or at their edge."""

_QUESTION, _ANSWER = "three hungry zebras", "seven quick yaks"
"""Plain words that no template holds and every tokenizer knows the letters of."""


def chat_template(processor: ProcessorMixin) -> str | None:
    """The processor's template, else its tokenizer's, where older checkpoints keep it; of several the default."""
    found = processor.chat_template or getattr(processor.tokenizer, "chat_template", None)
    return found.get("default") if isinstance(found, Mapping) else found


def render(processor: ProcessorMixin, messages: Sequence[Mapping[str, Any]], *, prompt: bool = True) -> str:
    """`messages` by the chat template; `prompt` opens the answer's turn.

    Raises:
        Exception: whatever the template raises of messages that it does not admit.
    """
    turns: list[Any] = list(messages)  # transformers' annotation knows no content in parts
    return processor.apply_chat_template(
        turns, chat_template=chat_template(processor), add_generation_prompt=prompt, tokenize=False
    )


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer begins every text with its BOS."""
    return tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]


def missing_bos(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """What goes before the ids of a rendered `text`: BOS, where the tokenizer adds one and the template has not."""
    if not adds_bos(tokenizer) or text.startswith(tokenizer.bos_token):
        return []
    return [tokenizer.bos_token_id]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Every token that is taken for a control token wherever a text spells it out, by its text."""
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | {
        token: cast("int", tokenizer.convert_tokens_to_ids(token)) for token in tokenizer.all_special_tokens
    }


def placeholder(processor: ProcessorMixin, kind: Literal["image", "video"]) -> str | None:
    """What stands for a picture or a video in a rendered text; None where the processor knows none."""
    return getattr(processor, f"{kind}_token", None)


def placeholder_id(processor: ProcessorMixin, kind: Literal["image", "video"]) -> int | None:
    """The token of `placeholder`."""
    return getattr(processor, f"{kind}_token_id", None)


def feature_token_id(processor: ProcessorMixin) -> int:
    """The token that a picture's features take the place of; Gemma's mark in the text is another."""
    found = getattr(processor.tokenizer, "image_token_id", None)
    return placeholder_id(processor, "image") if found is None else found


def banned_token_ids(processor: ProcessorMixin) -> tuple[int, ...]:
    """Ids that no response may contain: what stands for pictures, videos and sounds, and their edges.

    Found by the roles that processor and tokenizer name (``image_token``, ``vision_start_token``, ``boi_token`` …) and
    among the special tokens by their text (``<|vision_pad|>`` has no role).
    """
    tokenizer = processor.tokenizer
    vocabulary = tokenizer.get_vocab()
    roles = {**vars(processor), **tokenizer.special_tokens_map}
    named = [token for role, token in roles.items() if role.endswith("_token") and _VISUAL.search(role)]
    spelt = [token for token in special_tokens(tokenizer) if _VISUAL.search(token)]
    return tuple(sorted({vocabulary[str(token)] for token in (*named, *spelt) if str(token) in vocabulary}))


def turn_end_ids(processor: ProcessorMixin) -> tuple[int, ...]:
    """The control token that closes an answer in the chat template; none where it closes with plain text or nothing.

    It need not be the tokenizer's EOS: Gemma's is ``<end_of_turn>``.
    """
    closing = render(processor, _conversation(), prompt=False).rpartition(_ANSWER)[2].strip()
    special = special_tokens(processor.tokenizer)
    first = [token for token in special if closing.startswith(token)]
    return (special[max(first, key=len)],) if first else ()


def padding_id(tokenizer: PreTrainedTokenizerBase, banned_ids: Sequence[int] = ()) -> int:
    """A token to fill batches with, which is masked everywhere: the tokenizer's own, else its EOS, else any other.

    Never one of `banned_ids`: a model would put a picture's features into the padding.
    """
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, *range(len(banned_ids) + 1))
    return next(token for token in candidates if token is not None and token not in set(banned_ids))


def check_processor(processor: ProcessorMixin, config: PretrainedConfig, source: str) -> None:
    """Raises ValueError, in one line with `source`'s name, for a processor that prompts can't be built with."""
    problem = _parts(processor) or _template(processor) or _agreement(processor, config)
    if problem is not None:
        raise ValueError(f"{source}: {problem}")


def _conversation() -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]},
    ]


def _parts(processor: ProcessorMixin) -> str | None:
    for name in ("tokenizer", "image_processor", "image_token", "image_token_id"):
        if getattr(processor, name, None) is None:
            return (
                f"its processor ({type(processor).__name__}) has no {name}: atrl needs a model that takes pictures as "
                "tokens, with the processor in the checkpoint (preprocessor_config.json or processor_config.json)"
            )
    if chat_template(processor) is None:
        return (
            "it has no chat template: put chat_template.jinja of the instruction-tuned model into its folder, since "
            "prompts are built by it"
        )
    return None


def _template(processor: ProcessorMixin) -> str | None:
    question, answer = _conversation()
    try:
        opened, closed = render(processor, [question]), render(processor, [question], prompt=False)
    except Exception as error:  # templates are programs
        return f"its chat template fails on a question with a picture ({type(error).__name__}: {_line(error)})"
    picture = placeholder(processor, "image")
    if opened.count(_QUESTION) != 1 or opened.count(picture) != 1:
        return (
            f"its chat template makes {opened!r} of a picture and {_QUESTION!r}, which must hold "
            f"{picture} and the words once each: take the template of the model's own processor, whose "
            "messages have parts"
        )
    try:
        whole = render(processor, [question, answer], prompt=False)
    except Exception as error:
        return f"its chat template fails on an answer ({type(error).__name__}: {_line(error)})"
    goes_on = whole.startswith(opened) and whole.removeprefix(opened).lstrip().startswith(_ANSWER)
    if opened == closed and not goes_on:  # some families' answers follow the question directly
        return (
            "its chat template ignores add_generation_prompt, so the model would have to open the answer's turn "
            "itself: let the template do so"
        )
    return None


def _agreement(processor: ProcessorMixin, config: PretrainedConfig) -> str | None:
    """What processor and model must have in common for a picture's tokens to be as many as its features."""
    vision = getattr(config, "vision_config", None)
    there = {
        "image token": (feature_token_id(processor), getattr(config, "image_token_id", None)),
        "merge size": (
            getattr(processor.image_processor, "merge_size", None), getattr(vision, "spatial_merge_size", None)
        ),
        "tokens of a picture": (
            getattr(processor, "image_seq_length", None),
            getattr(config, "image_seq_length", None) or getattr(config, "mm_tokens_per_image", None),
        ),
    }  # fmt: skip
    for what, (own, models) in there.items():
        if None not in (own, models) and own != models:
            return f"its processor's {what} is {own} and its model's is {models}: they are of different checkpoints"
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())

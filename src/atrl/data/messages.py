"""A problem told as a conversation: a list of messages, the last of which asks the question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

from atrl.data.prompts import IMAGE_MARK
from atrl.types import Turn

ROLES: tuple[str, ...] = get_args(get_type_hints(Turn)["role"])


def read_messages(value: Sequence[Any], what: str) -> tuple[tuple[Turn, ...], str]:
    """The turns before the last message, and the text of that one.

    A message is ``{"role": "system" | "user" | "assistant", "content": …}``, its content a text with ``<image>`` marks
    or a list of parts: ``{"type": "text", "text": …}`` and ``{"type": "image"}``, which is a mark too.

    Args:
        value: the messages.
        what: named in errors: the problem, its place and the column.

    Raises:
        ValueError: in one line, for a message of another form, or if the last one is not the user's.
    """
    turns = [_turn(message, f"{what}, message {number}") for number, message in enumerate(value, start=1)]
    if not turns or turns[-1].role != "user":
        role = turns[-1].role if turns else "nobody"
        raise ValueError(
            f"{what} must end with the user's question, and ends with {role}: leave the answer to be found out"
        )
    return tuple(turns[:-1]), turns[-1].text


def _turn(message: Any, what: str) -> Turn:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES or "content" not in message:
        raise ValueError(f"{what} must have a role ({', '.join(ROLES)}) and a content, got {_shown(message)}")
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, Sequence):
        raise ValueError(f"{what} must have a text or a list of parts as content, got {_shown(content)}")
    return Turn(message["role"], "".join(_text(part, what) for part in parts))


def _text(part: Any, what: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image":
        return IMAGE_MARK
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise ValueError(f"{what} has a part that is neither a text nor an image: {_shown(part)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}…"

r"""Where in a response its final answer stands.

The answer is the content of the last ``\boxed{...}``; without one, that of the last ``<answer>...</answer>``.
Responses are hostile input: everything here is one pass over the text, without recursion or backtracking.
"""

from __future__ import annotations

import re

_BRACES = re.compile(r"\\boxed\s*\{|\\[\\{}]|[{}]")
_OPEN, _CLOSE = "<answer>", "</answer>"


def boxed_spans(text: str) -> list[tuple[int, int]]:
    r"""Character ranges ``[start, end)`` of the contents of every balanced ``\boxed{...}``, by start.

    Nested braces and nested boxes count; escaped braces (``\{``) are text; a box that never closes is left
    out.
    """
    if "\\boxed" not in text:
        return []
    spans: list[tuple[int, int]] = []
    opened: list[int | None] = []  # where the content of each open brace starts; None: not a box
    for match in _BRACES.finditer(text):
        mark = match.group()
        if mark == "{":
            opened.append(None)
        elif mark.startswith("\\boxed"):
            opened.append(match.end())
        elif mark == "}" and opened:
            start = opened.pop()
            if start is not None:
                spans.append((start, match.start()))
    return sorted(spans)


def final_answer(text: str) -> str | None:
    r"""What the last balanced ``\boxed{...}`` holds, else the last ``<answer>...</answer>``, else None.

    The last box is the one that starts last, so of nested boxes it is the innermost.
    """
    if spans := boxed_spans(text):
        start, end = spans[-1]
        return text[start:end]
    end = text.rfind(_CLOSE)
    start = text.rfind(_OPEN, 0, end) if end >= 0 else -1
    return text[start + len(_OPEN) : end] if start >= 0 else None


def last_line(text: str) -> str:
    """The last line that is not blank, stripped; empty if there is none."""
    stripped = text.rstrip()
    return stripped[max(stripped.rfind("\n"), stripped.rfind("\r")) + 1 :].strip()

"""A response as a piece of HTML: its tokens coloured by weight. What the model wrote is hostile and is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from atrl.report.cards import scale_top, tint
from atrl.report.text import printable

MAX_TOKEN = 200
"""Characters shown of one token."""

_BOX = (
    "font:15px/1.9 system-ui,sans-serif;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;"
    "color:#1b1b1f;background:#fff;padding:6px"
)
_ANCHOR = "text-decoration:underline 2px #9a3f00;text-underline-offset:3px;"


def token_html(tokens: Sequence[str], weights: Sequence[float], anchors: Sequence[bool] | None, *, most: int) -> str:
    """The first `most` tokens, darker the heavier they are, anchors underlined; those that look alike share a span.

    Args:
        tokens: [token] pieces of the response.
        weights: [token] credit, 1 on average.
        anchors: [token], where the scheme names any.
    """
    marks = list(anchors or [False] * len(tokens))
    top = scale_top(weights)
    looks = [(round(tint(weight, top), 2), mark) for weight, mark in zip(weights, marks, strict=True)]
    spans = []
    for (strength, anchor), run in groupby(range(min(most, len(tokens))), key=looks.__getitem__):
        text = "".join(escape(printable(tokens[i])[:MAX_TOKEN]) for i in run)
        style = f"background:rgb(255 158 30/{strength:g});{_ANCHOR if anchor else ''}"
        spans.append(f'<span style="{style}">{text}</span>')
    left = len(tokens) - most
    more = f"<p><small>… {left:,} more tokens</small></p>" if left > 0 else ""
    return f'<div style="{_BOX}">{"".join(spans)}{more}</div>'

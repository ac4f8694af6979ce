"""An answer in the terminal: the more weight, the stronger the colour; anchors bold and underlined, or in brackets."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TextIO

from atrl.report.cards import scale_top, tint
from atrl.report.text import printable

RAMP = (230, 229, 222, 215, 208, 202)
"""Backgrounds of the 256-colour palette, pale yellow to orange; a weight of 1 is among the palest."""
RESET = "\x1b[0m"


def takes_colour(stream: TextIO = sys.stdout, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `stream` is a terminal with colours, and NO_COLOR (https://no-color.org) is not set."""
    return stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM", "") not in ("", "dumb")


def painted(tokens: Sequence[str], weights: Sequence[float], anchors: Sequence[bool] | None, *, colour: bool) -> str:
    """The tokens in one string; what the model wrote can't steer the terminal."""
    shown = [printable(token) for token in tokens]
    chosen = anchors or [False] * len(tokens)
    if not colour:
        return _bracketed(shown, chosen)
    top = scale_top(weights)
    triples = zip(shown, weights, chosen, strict=True)
    return "".join(_coloured(text, tint(weight, top), anchor) for text, weight, anchor in triples)


def _coloured(text: str, strength: float, anchor: bool) -> str:
    style = "1;4;" if anchor else ""
    if strength:
        style += f"30;48;5;{RAMP[min(len(RAMP) - 1, int(strength * len(RAMP)))]}"
    # Each line by itself: a background that runs over a line break fills the line to its end.
    return "\n".join(f"\x1b[{style.rstrip(';') or '0'}m{line}{RESET}" if line else "" for line in text.split("\n"))


def _bracketed(tokens: Sequence[str], anchors: Sequence[bool]) -> str:
    """Neighbouring anchors share their brackets."""
    runs = groupby(zip(tokens, anchors, strict=True), key=lambda pair: pair[1])
    joined = [(anchor, "".join(text for text, _ in run)) for anchor, run in runs]
    return "".join(f"[{text}]" if anchor else text for anchor, text in joined)

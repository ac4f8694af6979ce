"""The recorded rollouts as the page shows them: coloured tokens beside pictures with heat maps."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atrl.report.clusters import ClusterView, cluster_view
from atrl.report.figures import number
from atrl.report.heatmaps import HeatMaps, heat_maps
from atrl.report.pictures import Picture, embed
from atrl.report.run_folder import Response
from atrl.report.text import printable

UNIT_TINT = 0.16
"""Tint of a token of weight 1, which is what every token gets without credit assignment."""
LONG_RESPONSE = 400
"""Tokens above which a response is folded, and the others are no part of the page until they are asked for."""

_MARK = re.compile("<image>|<video>")


@dataclass(frozen=True, slots=True)
class Token:
    """One token as it is drawn.

    Attributes:
        text: printable; the template escapes it.
        tint: 0 … 1, strength of the background.
        marks: CSS classes: ``a`` anchor, ``r`` reads the picture.
    """

    text: str
    tint: float
    marks: str


@dataclass(frozen=True, slots=True)
class Card:
    """One rollout as it is drawn; all its strings are printable but not escaped."""

    sample: Response
    question: list[str]
    """The text around the pictures and videos, with what was said before: one piece more than there are marks."""
    gold: str
    problem: str
    parts: list[tuple[str, str]]
    tokens: list[Token]
    pictures: list[Picture]
    """Pictures and videos in the order of their marks."""
    heat: HeatMaps | None
    clusters: ClusterView | None

    @property
    def is_long(self) -> bool:
        """Whether the response is folded at first."""
        return len(self.tokens) > LONG_RESPONSE

    @property
    def first_tokens(self) -> list[Token]:
        """What the page holds from the start; the script adds the others when they are asked for."""
        return self.tokens[:LONG_RESPONSE]

    @property
    def names(self) -> list[str]:
        """[picture] "picture 1", "video 1", …, each kind counted by itself."""
        kinds = [picture.kind for picture in self.pictures]
        return [f"{kind} {kinds[: i + 1].count(kind)}" for i, kind in enumerate(kinds)]

    @property
    def anchor_count(self) -> int:
        """Anchors in the response."""
        return sum(self.sample.anchors or [])

    def data(self) -> dict[str, Any]:
        """What the page's script needs beyond the markup: per-token numbers and the heat maps."""
        sample, heat = self.sample, self.heat
        return {
            "weights": [rounded(weight) for weight in sample.weights],
            "density": None if sample.density is None else [rounded(value) for value in sample.density],
            "entropy": None if sample.entropy is None else [rounded(value) for value in sample.entropy],
            "heat": None
            if heat is None
            else {
                "overview": heat.overview,
                "kept": None if len(heat.kept) == len(sample.tokens) else heat.kept,
                "levels": heat.levels,
                "peaks": heat.peaks,
            },
            "folded": [[token.text, round(token.tint, 3), token.marks] for token in self.tokens[LONG_RESPONSE:]],
            "clusters": None if sample.clusters is None or self.clusters is None else sample.clusters.of,
            "heads": None if sample.heads is None else sample.heads.model_dump(),
        }


def make_cards(samples: Sequence[Response], run_dir: Path) -> list[Card]:
    """Cards for `samples`, their tokens tinted on one common scale.

    Raises:
        ValueError: if a picture lies outside `run_dir`.
    """
    top = scale_top([weight for sample in samples for weight in sample.weights])
    return [_card(sample, top, run_dir) for sample in samples]


def _card(sample: Response, top: float, run_dir: Path) -> Card:
    pictures = [
        embed(run_dir, name, problem=sample.problem, timestamps=times)
        for name, times in zip(sample.images, sample.timestamps or [None] * len(sample.images), strict=True)
    ]
    return Card(
        sample=sample,
        question=[printable(piece).strip() for piece in _MARK.split(asked(sample))],
        gold=printable(sample.gold),
        problem=printable(sample.problem),
        parts=[(printable(name), number(value)) for name, value in sample.parts.items()],
        tokens=[_token(sample, i, top) for i in range(len(sample.tokens))],
        pictures=pictures,
        heat=heat_maps(sample),
        clusters=cluster_view(sample),
    )


def _token(sample: Response, i: int, top: float) -> Token:
    marks = [mark for mark, column in (("a", sample.anchors), ("r", sample.reading)) if column and column[i]]
    # A token that shows nothing (a line break, half a character) still needs something to point at.
    text = printable(sample.tokens[i]).replace("\n", "↵\n") or "∅"
    return Token(text, tint(sample.weights[i], top), " ".join(marks))


def asked(sample: Response) -> str:
    """The question, behind the conversation that it goes on with."""
    if not sample.history:
        return sample.question
    turns = [*((turn.role, turn.text) for turn in sample.history), ("user", sample.question)]
    return "\n".join(f"{role}: {text}" for role, text in turns)


def scale_top(weights: Sequence[float]) -> float:
    """The weight of the strongest tint: the largest that occurs, at least 2, rounded up to a half."""
    return max(2.0, math.ceil(2 * max(weights, default=0.0)) / 2)


def tint(weight: float, top: float) -> float:
    """Weight 0 … `top` to a tint of 0 … 1: linear up to `UNIT_TINT` at weight 1, and linear from there to 1.

    The bend at 1 keeps ordinary tokens pale whatever the largest weight is; more weight never looks weaker.
    """
    if weight <= 1:
        return UNIT_TINT * weight
    return min(1.0, UNIT_TINT + (1 - UNIT_TINT) * (weight - 1) / (top - 1))


def rounded(value: float | None) -> float | None:
    """Three significant digits; None for what JSON can't hold."""
    return float(f"{value:.3g}") if value is not None and math.isfinite(value) else None

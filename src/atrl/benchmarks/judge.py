"""A language model as judge: what a benchmark asks it, and what stands behind a verdict.

A benchmark that can be judged has `request` (the next question, given the replies so far, or None when there are
enough) and `settle` (the verdict). A judge answers questions; what it could not answer is no verdict, and never a
wrong answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from atrl.benchmarks.base import Item

if TYPE_CHECKING:
    from atrl.benchmarks.base import Answer, Scored


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One question to a judge.

    `attempt` tells apart repetitions of a question whose reply made no sense, which a cache must not answer alike.
    """

    text: str
    max_tokens: int = 256
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: a text, or why there is none."""

    text: str | None
    error: str | None = None


@runtime_checkable
class Judge(Protocol):
    """Answers questions, in order; see `endpoint.py` for one behind an OpenAI-compatible endpoint."""

    @property
    def name(self) -> str:
        """The model, as the stamp names it."""

    def ask(self, requests: Sequence[JudgeRequest]) -> list[Reply]:
        """One reply a request; errors are values, not exceptions."""

    @property
    def failure(self) -> str | None:
        """Why the last question that failed did; None where all were answered."""

    @property
    def last_reply(self) -> str | None:
        """What it said last; None where it said nothing yet."""

    def usage(self) -> dict[str, int]:
        """What it cost so far: requests, cache hits, tokens, failures."""


@runtime_checkable
class Judged(Protocol):
    """A benchmark that says what to ask a judge."""

    def request(self, item: Item, response: str, replies: tuple[str, ...]) -> JudgeRequest | None:
        """The next question, or None when the replies are enough."""

    def settle(self, item: Item, response: str, replies: tuple[str, ...]) -> Scored | None:
        """The verdict, or None where the replies hold none."""


def judge_all(benchmark: Judged, judge: Judge, pairs: Sequence[tuple[Item, Answer]]) -> list[Scored | None]:
    """The verdict on every answer; None where the judge failed. Questions of all answers go out together."""
    replies: list[tuple[str, ...]] = [() for _ in pairs]
    failed: set[int] = set()
    waiting = list(range(len(pairs)))
    while waiting:
        asked = []
        for index in waiting:
            item, answer = pairs[index]
            request = benchmark.request(item, answer.response or "", replies[index])
            if request is not None:
                asked.append((index, request))
        for (index, _), reply in zip(asked, judge.ask([request for _, request in asked]), strict=True):
            if reply.text is None:
                failed.add(index)
            else:
                replies[index] = (*replies[index], reply.text)
        waiting = [index for index, _ in asked if index not in failed]
    return [
        None if index in failed else benchmark.settle(item, answer.response or "", replies[index])
        for index, (item, answer) in enumerate(pairs)
    ]


def prompt_hash(benchmark: Judged) -> str:
    """SHA-256 of the judge's first two questions about an empty problem: changes with their wording and nothing else.

    A benchmark has no more than two kinds of question.
    """
    item = Item(id="", gold="", row={})
    asked = [benchmark.request(item, "response", replies) for replies in ((), ("",))]
    return hashlib.sha256("\n".join(request.text for request in asked if request).encode()).hexdigest()

"""Mathematical equality of answers, by math-verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atrl.rewards import math_worker
from atrl.rewards.base import Verdict
from atrl.rewards.bounded import BoundedPart
from atrl.rewards.choices import choice_letter
from atrl.rewards.claims import base, claim, commits, conclusion, contradicts, denies, says, worded
from atrl.rewards.extract import final_answer, last_line
from atrl.rewards.formula import read, to_latex
from atrl.rewards.notation import (
    MAX_ANSWER,
    TEXT,
    Kind,
    as_text,
    blanks,
    given_blanks,
    is_prose,
    kind_of,
    same_words,
    spell_mixed,
    unmarked,
)
from atrl.rewards.units import has_variable, last_unit

if TYPE_CHECKING:
    from atrl.types import Problem

_SEARCHED = 4000  # characters at the end of a response without a marked answer

_UNREAD = Verdict(0.0, parsed=False)
_WRONG = Verdict(0.0, parsed=True)
_RIGHT = Verdict(1.0, parsed=True)


@dataclass(frozen=True, slots=True)
class _Question:
    """What a worker is to decide: the arguments of `math_worker.judge`."""

    gold: str
    answer: str
    prose: bool


class MathAnswer(BoundedPart):
    """1 where the extracted answer equals the gold, else 0.

    A gold answer is a multiple-choice letter, words or mathematics (`notation.Kind`). Mathematics is compared
    by math-verify (https://github.com/huggingface/Math-Verify) in worker processes, without its unit, which must
    be the gold's where both have one (`units`); an answer that breaks their limits counts as unparseable, and so
    does one that asserts no one value (`claims`). Several blanks (a gold of several lines) are right when each
    is, in order.

    Args:
        weight: factor of this part in the reward.
        require_boxed: read only a boxed (or ``<answer>``) answer. False: in a response without one,
            math-verify looks for the last formula or number; letters and words are read from the last line.
        float_rounding: decimals to which floats are compared.
        cpu_seconds: processor time for reading and comparing one answer.
        memory_gib: what a worker may take for it, in GiB above its size at the start.
        workers: how many processes.
    """

    name = "math"
    is_answer = True
    edition = 2

    def __init__(
        self,
        *,
        weight: float = 1.0,
        require_boxed: bool = True,
        float_rounding: int = 6,
        cpu_seconds: float = 2.0,
        memory_gib: float = 1.0,
        workers: int = 2,
    ) -> None:
        super().__init__(weight=weight, cpu_seconds=cpu_seconds, memory_gib=memory_gib, workers=workers)
        if not 0 <= float_rounding <= 15:
            raise ValueError(f"reward.parts.math.float_rounding must be in [0, 15], got {float_rounding}: use 6, say")
        self.require_boxed = require_boxed
        self.float_rounding = float_rounding

    def gold_faults(self, problems: Sequence[Problem]) -> list[str | None]:
        """A gold answer must be a letter, words, or mathematics that math-verify reads within the limits."""
        golds = [blanks(problem.answer) for problem in problems]
        formulas = {part: to_latex(part) for parts in golds for part in parts if kind_of(part) is Kind.MATHS}
        asked = sorted({latex for latex in formulas.values() if latex})
        answers = self._workers.run(math_worker.readable, [(latex,) for latex in asked])
        read = dict(zip(asked, answers, strict=True))

        def fault(parts: list[str]) -> str | None:
            if not any(as_text(part) for part in parts):
                return "is empty: give the problem an answer or leave it out"
            unread = [part for part in parts if part in formulas and not read.get(formulas[part] or "")]
            return "can't be read as mathematics: write it in LaTeX, or use reward=exact" if unread else None

        return [fault(parts) for parts in golds]

    def score(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """One verdict a text; unparsed where there is no answer of the gold's kind, or it broke a limit."""
        drafts = [self._draft(text, problem.answer) for text, problem in zip(texts, problems, strict=True)]
        asked = list(dict.fromkeys(item for draft in drafts for item in draft if isinstance(item, _Question)))
        calls = [(q.gold, q.answer, q.prose, self.float_rounding) for q in asked]
        settled = dict(zip(asked, self._workers.run(math_worker.judge, calls), strict=True))

        def settle(item: Verdict | _Question) -> Verdict:
            if isinstance(item, Verdict):
                return item
            readable, right = settled[item] or (False, False)  # None: it broke a limit
            return Verdict(float(right), parsed=readable)

        return [_all_right([settle(item) for item in draft]) for draft in drafts]

    def _draft(self, text: str, gold: str) -> list[Verdict | _Question]:
        """One entry a blank: the verdict, or what a worker must be asked."""
        golds = blanks(gold)
        answer = final_answer(text)
        if answer is None and not self.require_boxed:
            searched = len(golds) == 1 and kind_of(gold) is Kind.MATHS
            if searched and (latex := to_latex(gold)):
                return [_Question(latex, text[-_SEARCHED:], prose=True)]
            answer = last_line(text)
        if not answer or not answer.strip() or len(answer) > MAX_ANSWER:
            return [_UNREAD]
        if len(golds) == 1:
            return [_compare(golds[0], answer)]
        given = given_blanks(answer)
        if len(given) != len(golds):
            return [_WRONG]
        return [_compare(*pair) for pair in zip(golds, given, strict=True)]


def _compare(gold: str, answer: str) -> Verdict | _Question:
    kind = kind_of(gold)
    if kind is Kind.LETTER:
        letter = choice_letter(answer)
        if letter is None:
            return _UNREAD
        return _RIGHT if letter == choice_letter(gold) else _WRONG
    if kind is Kind.WORDS:
        return _RIGHT if same_words(gold, answer) else _WRONG
    return _compare_maths(gold, answer)


def _compare_maths(gold: str, answer: str) -> Verdict | _Question:
    gold_latex, gold_unit = read(gold)
    if gold_latex is None:
        return _UNREAD
    if as_text(gold) == as_text(answer):
        return _RIGHT
    sentence, latex, unit = _reading(spell_mixed(answer), has_variable(gold_latex))
    asserted = sentence or latex
    if asserted is None or denies(sentence or answer) or not commits(asserted, gold_latex):
        return _UNREAD
    if len({gold_unit, unit} - {None}) > 1:  # 5 m is not 5 cm, and 5 is either
        return _WRONG
    if any(contradicts(text, gold_latex) for text in (asserted, sentence or answer)):
        return _WRONG
    if base(asserted) not in {None, base(gold_latex)}:
        return _WRONG
    if latex is None:
        return _Question(gold_latex, claim(asserted), prose=True)
    return _RIGHT if latex == gold_latex else _Question(gold_latex, latex, prose=False)


def _reading(answer: str, letters: bool) -> tuple[str | None, str | None, str | None]:
    """The sentence that an answer is, if it is one; its formula, if it can be told apart from words; and its unit."""
    sentence = conclusion(answer) if is_prose(answer) or says(answer) else None
    if sentence:
        latex, unit = read(claim(sentence), letters)
        if latex and not worded(latex):
            return sentence, latex, unit
        if "$" in answer or "\\" not in TEXT.sub(r"\1", answer):  # or math-verify's search would find no formula
            return sentence, None, last_unit(unmarked(sentence))
    return None, *read(answer, letters)


def _all_right(verdicts: list[Verdict]) -> Verdict:
    return Verdict(
        value=float(bool(verdicts) and all(verdict.value == 1 for verdict in verdicts)),
        parsed=bool(verdicts) and all(verdict.parsed for verdict in verdicts),
    )

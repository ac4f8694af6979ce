"""The easy-VQA pictures (64×64 pixels, one coloured shape each) with their open questions.

Data: the package `easy-vqa` 1.0 (MIT), https://github.com/vzhou842/easy-VQA. Its yes/no questions are left
out, because most of them can be answered without the picture.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atrl.data.base import (
    Baseline,
    Split,
    assign_split,
    check_fraction,
    check_limit,
    seeded_subset,
    uniform_hash,
)
from atrl.data.prompts import IMAGE_MARK
from atrl.types import Problem, ReadingRule

_COLOUR_QUESTION = re.compile(r"what (?:color is|is the color of) the (?P<shape>\w+)\?")
_SHAPE_QUESTION = re.compile(r"what is the (?P<colour>\w+ )shape\?|what shape (?:is in the image|is present|does .+)\?")

_COLOUR_TARGETS = (
    r"The {thing} is {answer}, so the answer is \boxed{{{answer}}}.",
    r"The {thing} in the picture is {answer}. The answer is \boxed{{{answer}}}.",
    r"I see a {answer} {thing}, so its color is \boxed{{{answer}}}.",
    r"There is a {answer} {thing} here. The color is \boxed{{{answer}}}.",
    r"Looking at the picture, the {thing} is {answer}. So it is \boxed{{{answer}}}.",
    r"The color of the {thing} is {answer}, which gives \boxed{{{answer}}}.",
    r"This {thing} is painted {answer}, so the answer is \boxed{{{answer}}}.",
    r"The picture shows a {answer} {thing}. That makes it \boxed{{{answer}}}.",
)
_SHAPE_TARGETS = (
    r"The {thing} is a {answer}, so the answer is \boxed{{{answer}}}.",
    r"The {thing} in the picture is a {answer}. The answer is \boxed{{{answer}}}.",
    r"I see a {answer}, so the {thing} is a \boxed{{{answer}}}.",
    r"There is a {answer} here. The shape is \boxed{{{answer}}}.",
    r"Looking at the picture, the {thing} is a {answer}. So it is \boxed{{{answer}}}.",
    r"The picture contains a {answer}, which gives \boxed{{{answer}}}.",
    r"This {thing} has the form of a {answer}, so the answer is \boxed{{{answer}}}.",
    r"The picture shows a {answer}. That makes it \boxed{{{answer}}}.",
)


@dataclass(frozen=True, kw_only=True)
class EasyVqaProblems:
    """The package's open questions ("what color is the circle?"), with worked answers for the warm-up.

    `test` is the package's own test set. `selection` takes whole pictures out of its training set, so that no
    picture is in two splits.

    Args:
        selection_fraction: share of the training pictures that `selection` gets.
        train_limit, selection_limit, test_limit: at most this many problems, chosen by `seed`; None for all.
        slip_rate: chance for the worked answer of a training problem to state another colour or shape, as a careless
            annotator's would; the verifiable answer of the problem is never touched.
        seed: of the selection split, the limits, and the wording and slips of the worked answers.
    """

    selection_fraction: float = 0.05
    train_limit: int | None = None
    selection_limit: int | None = None
    test_limit: int | None = None
    slip_rate: float = 0.0
    seed: int = 0

    name = "easy_vqa"

    def __post_init__(self) -> None:
        check_fraction("data.selection_fraction", self.selection_fraction)
        check_fraction("data.slip_rate", self.slip_rate)
        for split in ("train", "selection", "test"):
            check_limit(f"data.{split}_limit", getattr(self, f"{split}_limit"))

    def load(self, split: Split) -> Sequence[Problem]:
        """The problems of `split`, in the package's order.

        Raises:
            ValueError: if the package is missing or the split is empty.
        """
        problems = self._open_questions(split)
        if not problems:
            raise ValueError(
                f"data.selection_fraction={self.selection_fraction} leaves no {split} split of easy_vqa: "
                f"{'raise' if split == 'selection' else 'lower'} it"
            )
        return seeded_subset(problems, getattr(self, f"{split}_limit"), seed=self.seed)

    def baseline(self) -> Baseline:
        """Accuracy on `test` of the answer that each wording of the question most often has in `train`.

        The train split counts in full, whatever its limit; the test problems are those that `load` gives.
        """
        usual = majority_answers(self._open_questions("train"))
        test = self.load("test")
        right = sum(usual.get(problem.question) == problem.answer for problem in test)
        return Baseline(
            description="most frequent answer to the same question in the training split, picture not seen",
            accuracy=right / len(test),
            problems=len(test),
        )

    def _open_questions(self, split: Split) -> list[Problem]:
        package = _package()
        if split == "test":
            rows, paths = package.get_test_questions(), package.get_test_image_paths()
        else:
            rows, paths = package.get_train_questions(), package.get_train_image_paths()
        pools: dict[bool, list[str]] = {True: [], False: []}
        for question, answer in sorted({(q, a) for q, a, _ in zip(*rows, strict=True) if a not in ("yes", "no")}):
            pool = pools[_asks_colour(question)]
            pool += [answer] * (answer not in pool)
        return [
            self._problem(
                f"easy_vqa-{'test' if split == 'test' else 'train'}-{index}",
                question,
                answer,
                paths[picture],
                names=pools[_asks_colour(question)],
                slips=split == "train",
            )
            for index, (question, answer, picture) in enumerate(zip(*rows, strict=True))
            if answer not in ("yes", "no") and split in ("test", self._split_of(picture))
        ]

    def _split_of(self, training_picture: int) -> Split:
        return assign_split(
            f"picture {training_picture}",
            seed=self.seed,
            selection_fraction=self.selection_fraction,
            test_fraction=0.0,
        )

    def _problem(
        self, problem_id: str, question: str, answer: str, picture: str, *, names: Sequence[str], slips: bool
    ) -> Problem:
        """`names` are all answers to questions of this kind; a worked answer states another of them if it `slips`."""
        stated, others = answer, [other for other in names if other != answer]
        if slips and others and uniform_hash(f"slip/{problem_id}", self.seed) < self.slip_rate:
            stated = others[int(uniform_hash(f"slip to/{problem_id}", self.seed) * len(others))]
        return Problem(
            id=problem_id,
            question=IMAGE_MARK + question,
            answer=answer,
            images=(Path(picture),),
            target=worked_answer(question, stated, uniform_hash(f"wording/{problem_id}", self.seed)),
            reading=ReadingRule(rf"\b({'|'.join(names)})\b", count=1),  # said again it is copied from there
        )


def worked_answer(question: str, answer: str, draw: float) -> str:
    r"""A sentence or two that name what the picture shows and end in ``\boxed{answer}``.

    Args:
        draw: in [0, 1), picks one of the eight wordings.

    Raises:
        ValueError: if the question is not one of easy-VQA's open ones.
    """
    if match := _COLOUR_QUESTION.fullmatch(question):
        targets, thing = _COLOUR_TARGETS, match["shape"]
    elif match := _SHAPE_QUESTION.fullmatch(question):
        targets, thing = _SHAPE_TARGETS, f"{match['colour'] or ''}shape"
    else:
        raise ValueError(f'easy_vqa asks {question!r}, which version 1.0 does not: pip install "easy-vqa==1.0"')
    return targets[int(draw * len(targets))].format(thing=thing, answer=answer)


def _asks_colour(question: str) -> bool:
    return _COLOUR_QUESTION.fullmatch(question) is not None


def majority_answers(problems: Iterable[Problem]) -> dict[str, str]:
    """For each question, word for word, its most frequent answer; of equals the first by alphabet."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for problem in problems:
        counts[problem.question][problem.answer] += 1
    return {
        question: min(answers, key=lambda answer: (-answers[answer], answer)) for question, answers in counts.items()
    }


def _package():
    try:
        import easy_vqa
    except ImportError as error:
        raise ValueError('data=easy_vqa needs the package easy-vqa: pip install "atrl[easy-vqa]"') from error
    return easy_vqa

"""The reward of a rollout: a weighted sum of parts, and what became of the rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from atrl.rewards.base import RewardPart, Verdict, describe_fault
from atrl.types import Problem, Reward, RolloutGroup, Status

_DESCRIBED, _NAMED = 3, 20


class WeightedReward:
    """``total = sum of weight * value`` over the parts; exactly one part judges the answer.

    Args:
        parts: the parts by the name under which they are reported.

    Raises:
        ValueError: not exactly one of the parts judges the answer.
    """

    def __init__(self, *, parts: Mapping[str, RewardPart]) -> None:
        self.parts: dict[str, RewardPart] = {str(name): part for name, part in parts.items()}
        answers = [name for name, part in self.parts.items() if part.is_answer]
        if len(answers) != 1:
            raise ValueError(
                f"reward.parts must hold exactly one part that judges the answer, got {answers or 'none'} "
                f"among {list(self.parts)}: keep one of exact and math"
            )
        self.answer_part = answers[0]

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise ValueError, naming the first few problems, if any gold answer can't be scored."""
        for part in self.parts.values():
            faults = zip(problems, part.gold_faults(problems), strict=True)
            bad = [(problem, fault) for problem, fault in faults if fault]
            if bad:
                raise ValueError(_list_faults(bad, len(problems)))

    def score(self, groups: Sequence[RolloutGroup]) -> list[list[Reward]]:
        """By group and rollout, aligned with `groups` and their rollouts.

        Every part sees all responses in one call, so that a worker pool gets a whole batch, and none is called for no
        response: a rank may have drawn nothing.
        """
        for group in groups:
            assert len(group.texts) == len(group.rollouts), "a rollout group needs one text for each rollout"
        if not groups:
            return []
        texts = [text for group in groups for text in group.texts]
        problems = [group.prompt.problem for group in groups for _ in group.texts]
        finished = [rollout.finished for group in groups for rollout in group.rollouts]

        by_part = {name: part.score(texts, problems) for name, part in self.parts.items()}
        for name, verdicts in by_part.items():
            assert len(verdicts) == len(texts), f"reward part {name} must return one verdict for each text"
        flat = iter(
            self._reward({name: verdicts[i] for name, verdicts in by_part.items()}, finished[i])
            for i in range(len(texts))
        )
        return [list(islice(flat, len(group.texts))) for group in groups]

    def _reward(self, verdicts: Mapping[str, Verdict], finished: bool) -> Reward:
        return Reward(
            total=sum(self.parts[name].weight * verdict.value for name, verdict in verdicts.items()),
            parts={name: verdict.value for name, verdict in verdicts.items()},
            status=status_of(verdicts[self.answer_part], finished),
        )

    def close(self) -> None:
        """Close every part; scoring again afterwards is allowed."""
        for part in self.parts.values():
            part.close()


def _list_faults(bad: Sequence[tuple[Problem, str]], count: int) -> str:
    """One line: the first few faults in full, more by their ids."""
    described = "; ".join(describe_fault(problem, fault) for problem, fault in bad[:_DESCRIBED])
    others = ", ".join(repr(problem.id) for problem, _ in bad[_DESCRIBED:_NAMED])
    rest = f"; likewise {others}{', ...' if len(bad) > _NAMED else ''}" if others else ""
    return f"{len(bad)} of {count} gold answers can't be scored: {described}{rest}"


def status_of(answer: Verdict, finished: bool) -> Status:
    """RIGHT even where the token limit then cut the response; a cut response is never UNPARSEABLE."""
    if answer.value == 1:
        return Status.RIGHT
    if not finished:
        return Status.TRUNCATED
    return Status.WRONG if answer.parsed else Status.UNPARSEABLE

"""How two scores of the same problems differ, problem by problem."""

from __future__ import annotations

from typing import Any

from atrl.evaluation.compare import mcnemar, paired_interval
from atrl.evaluation.score import Score
from atrl.types import Status

_ROUNDING = 1e-9


def paired_change(before: Score, after: Score) -> dict[str, Any] | None:
    """What became of the problems from `before` to `after`, ready for JSON, as `compare` has it of two evaluations.

    A problem is gained where more of its responses are right than before. None where the pairing is not known: of a
    score that is taken over from a checkpoint the figures alone are, and other problems can't be paired.
    """
    one, two = right_by_problem(before), right_by_problem(after)
    if not one or one.keys() != two.keys():
        return None
    differences = [two[name] - share for name, share in one.items()]
    gained, lost = (sum(sign * change > _ROUNDING for change in differences) for sign in (1, -1))
    return {
        "problems": len(differences),
        "ci95": list(paired_interval(differences, [1.0] * len(differences))),
        "gained": gained,
        "lost": lost,
        "p": mcnemar(gained, lost),
    }


def right_by_problem(score: Score) -> dict[str, float]:
    """The share of right responses by the problem's id; empty where the rollouts are not known."""
    return {
        group.prompt.problem.id: sum(reward.status is Status.RIGHT for reward in rewards) / len(rewards)
        for group, rewards in zip(score.groups, score.rewards, strict=True)
    }

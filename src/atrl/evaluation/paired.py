"""How two scores of the same problems differ, problem by problem."""

from __future__ import annotations

from typing import Any

from atrl.evaluation.compare import mcnemar, paired_interval
from atrl.evaluation.score import Score

_ROUNDING = 1e-9


def paired_change(before: Score, after: Score) -> dict[str, Any] | None:
    """What became of the problems from `before` to `after`, ready for JSON, as `compare` has it of two evaluations.

    A problem is gained where more of its responses are right than before. None where the pairing is not known, or the
    problems are others.
    """
    one, two = before.right, after.right
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

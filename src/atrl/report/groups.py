"""What became of the run's groups: how each status fares, and which prompts went worst and best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atrl.report.details import GroupLine
from atrl.types import Status


@dataclass(frozen=True, slots=True)
class Tally:
    """Rollouts of one status in one part of the run; means are None of no rollout."""

    share: float | None
    reward: float | None
    tokens: float | None


@dataclass(frozen=True, slots=True)
class StatusHealth:
    """One status in the first and in the last third of the run's steps."""

    status: str
    early: Tally
    late: Tally


def status_health(groups: Sequence[GroupLine]) -> list[StatusHealth]:
    """For every status, in the order of `Status`; empty without groups."""
    if not groups:
        return []
    early, late = first_third(groups), last_third(groups)
    return [StatusHealth(status.value, tally(early, status), tally(late, status)) for status in Status]


def tally(groups: Sequence[GroupLine], status: Status) -> Tally:
    """The rollouts of `status` among those of `groups`."""
    drawn = sum(group.size for group in groups)
    found = [group.statuses[status] for group in groups if status in group.statuses]
    count, tokens, reward = (sum(entry[i] for entry in found) for i in range(3))
    if not count:
        return Tally(0.0 if drawn else None, None, None)
    return Tally(count / drawn, reward / count, tokens / count)


def first_third(groups: Sequence[GroupLine]) -> list[GroupLine]:
    """Those of the first third of the steps, at least one step."""
    steps = sorted({group.step for group in groups})
    return [group for group in groups if group.step <= steps[max(0, len(steps) // 3 - 1)]]


def last_third(groups: Sequence[GroupLine]) -> list[GroupLine]:
    """Those of the last third of the steps, at least one step."""
    steps = sorted({group.step for group in groups})
    return [group for group in groups if group.step >= steps[-max(1, len(steps) // 3)]]


def extremes(groups: Sequence[GroupLine], count: int = 5) -> tuple[list[GroupLine], list[GroupLine]]:
    """The worst and the best groups of the last third of the run: by their share right, then their mean reward.

    At most `count` of each, none in both; a problem that came several times counts by its last visit.
    """
    if not groups:
        return [], []
    newest = {group.problem: group for group in sorted(last_third(groups), key=lambda group: group.step)}
    order = sorted(newest.values(), key=lambda group: (group.right / group.size, group.reward, -group.step))
    taken = min(count, len(order) // 2)
    return order[:taken], order[len(order) - taken :][::-1]

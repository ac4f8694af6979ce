"""By what an evaluation was measured: its stamp, and what two of these must have in common."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atrl.evaluation.finished import Finished
    from atrl.rewards.weighted import WeightedReward
    from atrl.rollout.settings import RolloutSettings
    from atrl.types import Problem

_PROBLEMS = "problems_sha256"
_OF_THE_CHECKPOINT = ("instruction", "max_prompt_tokens", "min_pixels", "max_pixels")
"""What a checkpoint brings along: others may be measured by other values, and a line says so."""


def held_out_stamp(
    problems: Sequence[Problem],
    reward: WeightedReward,
    *,
    samples: int,
    instruction: str,
    rollout: RolloutSettings,
) -> dict[str, Any]:
    """What must agree before two evaluations of held-out problems mean the same, pixels aside, which a model brings.

    Args:
        problems: all that were to be asked, those that turn out too long included.
        samples: to each of them at temperature 1, beside the greedy one.
        instruction: appended to each question.
        rollout: how long prompts and responses may be, and which frames of a video are shown.

    Raises:
        ValueError: if a picture can't be read.
    """
    with_videos = any(problem.videos for problem in problems)
    return {
        _PROBLEMS: _checksum(problems),
        "reward": reward.answer_part,
        "reward_rule": reward.parts[reward.answer_part].rule(),
        "samples": samples,
        "max_response_tokens": rollout.max_response_tokens,
        "frames": dataclasses.asdict(rollout.frames) if with_videos else None,
        "instruction": instruction,
        "max_prompt_tokens": rollout.max_prompt_tokens,
    }


def _checksum(problems: Sequence[Problem]) -> str:
    """SHA-256 of what is asked, shown and right, whatever the order and the files it comes in."""
    from atrl.evaluation.grounding import picture_digests

    digest = hashlib.sha256()
    for problem in sorted(problems, key=lambda problem: problem.id):
        pictures = [picture.hex() for picture in picture_digests(problem)]
        said = [[turn.role, turn.text] for turn in problem.history]
        content = json.dumps([problem.id, said, problem.question, problem.answer, pictures])
        digest.update(content.encode() + b"\n")
    return digest.hexdigest()


def check_alike(first: Finished, second: Finished, differences: Mapping[str, Sequence[Any]]) -> None:
    """Refuse two results of held-out problems that are not of the same problems and settings.

    Args:
        differences: of their stamps.

    Raises:
        ValueError: with what differs.
    """
    if _PROBLEMS in differences:
        one, other = (f"{result.result['data']} in {result.folder}" for result in (first, second))
        raise ValueError(
            f"compare: {one} and {other} are not the same problems: evaluate both with the same data and limit"
        )
    told = [
        f"{name} {in_short(one, other)}" for name, (one, other) in differences.items() if name not in _OF_THE_CHECKPOINT
    ]
    if told:
        raise ValueError(
            f"compare: {first.folder} and {second.folder} were scored by other settings ({'; '.join(told)}): evaluate "
            "one of them again with the other's"
        )


def stamp_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    """By name what two stamps say differently; what one doesn't say, as it is older, counts as None: not known."""
    names = list(dict.fromkeys([*first, *second]))
    return {name: [first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)}


def in_short(first: Any, second: Any) -> str:
    """Two values beside each other; of two mappings the entries that differ, so that these are not cut off."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        names = stamp_differences(first, second)
        first, second = ({name: value[name] for name in names if name in value} for value in (first, second))
    return f"{_short(first)} | {_short(second)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"

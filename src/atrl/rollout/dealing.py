"""Groups that all ranks drew, dealt out anew after some of them were left out.

What is kept of a round may have been drawn by few of the ranks, and every rank trains on an equal share. A group that
moves takes its responses along: ids, log-probs, texts and rewards, some ten bytes a token. Its pictures stay, and the
rank that gets the group builds the prompt again from the data. Sent around, a prompt of a large picture would be tens
of MB on every rank, with NCCL on its GPU beside the engine; built again it costs one picture's pre-processing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from atrl import parallel
from atrl.types import Prompt, Reward, RolloutGroup

Scored = tuple[RolloutGroup, list[Reward]]


class PromptStream(Protocol):
    """The data as one stream of prompts, which is at the same place on every rank."""

    def take(self, count: int) -> Sequence[Prompt]:
        """The next `count` prompts."""
        ...

    def again(self, prompt: Prompt) -> Prompt:
        """The whole prompt of which `prompt` is left without its pictures."""
        ...


def dealt(
    held: dict[int, Scored], *, kept: Sequence[int], left_out: Sequence[int], again: Callable[[Prompt], Prompt]
) -> tuple[list[Scored], list[Scored]]:
    """This rank's consecutive shares of the groups `kept` and of those `left_out`.

    Args:
        held: what this rank drew, by number; the numbers are those of all ranks' groups.
        kept: numbers of the groups to train on, whose prompts are whole.
        left_out: all other numbers; nothing but their responses and rewards is needed.
        again: a prompt without its pictures → the whole prompt.
    """
    own_kept, own_left_out = parallel.share(kept), parallel.share(left_out)
    leaving = held.keys() - {*own_kept, *own_left_out}
    sent = parallel.gather({number: _without_pictures(held[number]) for number in sorted(leaving)})
    received = {number: entry for entries in sent for number, entry in entries.items()}
    return (
        [held[number] if number in held else _whole(received[number], again) for number in own_kept],
        [_without_pictures(held[number]) if number in held else received[number] for number in own_left_out],
    )


def without_pictures(group: RolloutGroup) -> RolloutGroup:
    """`group` as it is sent around: its responses, and of its prompt what needs no picture."""
    problem = replace(group.prompt.problem, images=(), videos=())
    return replace(group, prompt=replace(group.prompt, problem=problem, pixels={}, images=(), videos=()))


def with_prompts(groups: Sequence[RolloutGroup], prompts: Sequence[Prompt]) -> list[RolloutGroup]:
    """`groups` that were sent around with the whole `prompts` again, to each its own, in order."""
    return [replace(group, prompt=prompt) for group, prompt in zip(groups, prompts, strict=True)]


def _without_pictures(scored: Scored) -> Scored:
    group, rewards = scored
    return without_pictures(group), rewards


def _whole(scored: Scored, again: Callable[[Prompt], Prompt]) -> Scored:
    group, rewards = scored
    return replace(group, prompt=again(group.prompt)), rewards

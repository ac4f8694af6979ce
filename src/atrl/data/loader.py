"""Batches of prompts for training, in an order that does not depend on how many processes share the work."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from atrl import parallel
from atrl.data.prompts import SHORTEN, PromptBuilder
from atrl.types import Problem, Prompt

RARE = 10
"""Problems of which at least one must fit for a batch to be worth the search, beyond a pass over the data."""


class PromptLoader:
    """`steps` batches of `batch_size` prompts, through as many shuffled passes over `problems` as that takes.

    A prompt that is too long is dropped, counted once and replaced by the next problem, so every batch is full. Of
    each batch a rank gets its share, whole batches being the same for every number of ranks.

    Args:
        problems: of the training split.
        builder: turns a problem into a prompt.
        batch_size: prompts per step.
        steps: batches of the whole run; less those that are done, the loader's length.
        seed: of the order.
    """

    def __init__(
        self, problems: Sequence[Problem], builder: PromptBuilder, *, batch_size: int, steps: int, seed: int
    ) -> None:
        self._problems, self._builder = problems, builder
        self._batch_size, self._steps, self._seed = batch_size, steps, seed
        self._cursor = 0
        self._done = 0
        self._starts: list[int] = []
        self._ordered: tuple[int, Sequence[int]] | None = None  # an epoch and its order
        self.dropped: set[str] = set()

    def __len__(self) -> int:
        return max(0, self._steps - self._done)

    def __iter__(self) -> Iterator[list[Prompt]]:
        self._starts = []
        for _ in range(self._steps - self._done):
            self._starts.append(self._cursor)
            yield list(parallel.share(self.take(self._batch_size)))

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts that fit.

        Raises:
            ValueError: if a whole pass over the data finds fewer, and not one in `RARE` fits.
        """
        batch: list[Prompt] = []
        lengths: list[int] = []
        tried = 0
        while len(batch) < count:
            if tried > len(self._problems) + count and len(batch) * RARE < tried:
                raise ValueError(
                    f"hardly any prompt fits into rollout.max_prompt_tokens={self._builder.max_prompt_tokens}: a whole "
                    f"pass over the data found {len(batch)}, and the shortest of the others has {min(lengths)} tokens: "
                    f"{SHORTEN}"
                )
            epoch, place = self._cursor // len(self._problems), self._cursor
            built = self._builder.build_all([self._problem(place)])
            self.dropped.update(built.dropped)
            lengths += built.lengths
            batch += [replace(prompt, epoch=epoch, place=place) for prompt in built.prompts]
            self._cursor += 1
            tried += 1
        return batch

    def again(self, prompt: Prompt) -> Prompt:
        """`prompt`, which a loader over the same problems took, built anew: another rank has its pictures."""
        built = self._builder.build(self._problem(prompt.place))
        return replace(built, epoch=prompt.epoch, place=prompt.place)

    def _problem(self, cursor: int) -> Problem:
        epoch, position = divmod(cursor, len(self._problems))
        return self._problems[self._order(epoch)[position]]

    def _order(self, epoch: int) -> Sequence[int]:
        if self._ordered is None or self._ordered[0] != epoch:
            order = list(range(len(self._problems)))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._ordered = (epoch, order)
        return self._ordered[1]

    def state_after(self, steps: int) -> dict[str, Any]:
        """Where in the data the loader stood after `steps` training steps of the run, whatever was drawn since."""
        index = steps - self._done
        cursor = self._starts[index] if index < len(self._starts) else self._cursor
        return {"cursor": cursor, "done": steps, "dropped": sorted(self.dropped)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, with the steps that are left."""
        self._cursor, self._done, self.dropped = state["cursor"], state["done"], set(state["dropped"])

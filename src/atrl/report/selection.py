"""Which of the recorded rollouts the report shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from atrl.report.run_folder import Sample
from atrl.types import Status

Item = TypeVar("Item")


def choose_samples(samples: Sequence[Sample], count: int = 10) -> list[Sample]:
    """Up to `count` rollouts in the order of their steps: early and late ones, right and not right ones.

    The rollouts fall into four quarters (first or second half by step, right or not). Each gets an equal part of the
    places, as far as it can fill them, and gives rollouts spread evenly over its own. The choice is a function of the
    samples alone.
    """
    order = sorted(range(len(samples)), key=lambda i: samples[i].step)
    middle = len(order) // 2
    quarters = []
    for half in (order[middle:], order[:middle]):
        for is_right in (True, False):
            quarter = [i for i in half if (samples[i].status is Status.RIGHT) == is_right]
            # By status first, so that spreading covers the ways in which an answer can fail.
            quarters.append(sorted(quarter, key=lambda i: (samples[i].status, samples[i].step)))
    places = fair_shares([len(quarter) for quarter in quarters], count)
    chosen = {i for quarter, n in zip(quarters, places, strict=True) for i in evenly_spaced(quarter, n)}
    return [samples[i] for i in order if i in chosen]


def fair_shares(sizes: Sequence[int], total: int) -> list[int]:
    """How many to take from groups of these sizes so that the counts differ least and add up to `total`.

    Fewer than `total` where the groups hold fewer; a place that can't be shared equally goes to an earlier group.
    """
    shares = [0] * len(sizes)
    left = min(total, sum(sizes))
    while left:
        for i, size in enumerate(sizes):
            if left and shares[i] < size:
                shares[i] += 1
                left -= 1
    return shares


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """`count` distinct items, one from the middle of each of `count` equal runs."""
    assert count <= len(items), f"{count} items asked of {len(items)}"
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]

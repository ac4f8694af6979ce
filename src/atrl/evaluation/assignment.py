"""An assignment made as cheap as it can be, by passing things on in circles."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int

    CostOf = Callable[[int, Int[np.ndarray, "n"]], Int[np.ndarray, "n"]]


def cheapest(given: Int[np.ndarray, "n"], cost_of: CostOf) -> Int[np.ndarray, "n"]:
    """A permutation of the things in `given` that costs the least; the same one where none costs less.

    While some can pass what they hold on in a circle and the cost falls by it, they do. Where there is no such circle
    no permutation is cheaper: M. Klein, Management Science 14 (1967), of flows, of which assignments are a kind.

    Args:
        given: what each has.
        cost_of: what it costs that one of them has each of some things: not negative.
    """
    held = given.copy()
    while circle := _circle(held, cost_of):
        held[circle] = held[circle[1:] + circle[:1]]
    return held


def _circle(held: Int[np.ndarray, "n"], cost_of: CostOf) -> list[int]:
    """Of whom each had better take what the next one holds; empty where there is none.

    The shortest paths of Bellman and Ford with a queue. A circle that saves something has one in it who pays now, so
    paths begin with these.
    """
    pays = np.array([cost_of(index, held[[index]])[0] for index in range(len(held))])
    length = np.where(pays > 0, 0.0, np.inf)
    before = np.full(len(held), -1)
    queue = deque(np.flatnonzero(pays).tolist())
    while queue:
        last = queue.popleft()
        through = length[last] - pays[last] + cost_of(last, held)
        shorter = through < length
        path = [last]
        while (previous := int(before[path[-1]])) >= 0:
            path.append(previous)
            if shorter[previous]:
                return path[::-1]
        length[shorter], before[shorter] = through[shorter], last
        waiting = set(queue)
        queue.extend(index for index in np.flatnonzero(shorter).tolist() if index not in waiting)
    return []

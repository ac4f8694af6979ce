"""How much room the transformers sampler makes for keys and values. No torch here: the planner needs none."""

from __future__ import annotations

ROOM = 64
"""Columns that are made at least where there is no room left; otherwise as many again as there are."""


def room_for(there: int, columns: int) -> int:
    """Columns of the tensors that take the place of `there` columns when `columns` are needed."""
    return max(2 * there, columns + ROOM)


def room_at_the_end(prompt: int, columns: int) -> int:
    """Columns that are there when a prompt has grown to `columns` a token at a time."""
    room = prompt
    while room < columns:
        room = room_for(room, room + 1)
    return room

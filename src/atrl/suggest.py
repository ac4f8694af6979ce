"""The name that was probably meant, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

CUTOFF = 0.6
"""Likeness below which a name is no suggestion: difflib's own default."""

SHORTEST_BEGINNING = 3
"""Letters that are enough of a beginning to suggest what goes on from them."""

LEAF_DISCOUNT = 0.95
"""What an exact match of the last part of a dotted key counts, so that the same whole key still wins."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the option most like `name`, or an empty string where none is close.

    Up to three that are as close are all named.
    """
    known = list(dict.fromkeys(options))
    close = _closest(name, known)
    if not close:  # as "info" for INFO
        spelt = {option.casefold(): option for option in known}
        close = [spelt[found] for found in _closest(name.casefold(), list(spelt))]
    return f", did you mean {' or '.join(map(repr, close))}?" if close else ""


def _closest(name: str, known: Sequence[str]) -> list[str]:
    scores = {option: difflib.SequenceMatcher(None, option, name).ratio() for option in known}
    best = max(scores.values(), default=0.0)
    return [option for option in known if scores[option] == best >= CUTOFF][:3]


def did_you_mean_or_all(name: str, options: Iterable[str]) -> str:
    """The hint of `did_you_mean`, or the whole list where no option is close: ``": there are a, b"``."""
    known = sorted(options)
    everything = f": there are {', '.join(known)}" if known else ": there are none"
    return did_you_mean(name, known) or everything


def nearest_keys(name: str, keys: Iterable[str], limit: int = 3) -> list[str]:
    """The dotted keys most like `name`: by spelling as a whole, or by their last part wherever it is nested.

    Returns every key that ties for the best score, at most `limit` of them, or none where nothing is close.
    """
    scores = {key: _likeness(name, key) for key in keys}
    best = max(scores.values(), default=0.0)
    if best < CUTOFF:
        return []
    return [key for key, score in scores.items() if score == best][:limit]


def _likeness(name: str, key: str) -> float:
    whole = difflib.SequenceMatcher(None, name, key).ratio()
    if len(name) >= SHORTEST_BEGINNING and key.startswith(name) and not {".", "/"} & set(key.removeprefix(name)):
        whole = max(whole, CUTOFF)  # as "exp" for experiment
    leaf = difflib.SequenceMatcher(None, name.rpartition(".")[2], key.rpartition(".")[2]).ratio()
    return max(whole, LEAF_DISCOUNT * leaf)

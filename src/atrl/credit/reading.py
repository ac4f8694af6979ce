"""Which tokens of a response spell out what was read off the picture, where the problem's generator knows."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor


def reading_mask(groups, tokenizer, mask: Bool[Tensor, "rollout response"]) -> Bool[Tensor, "rollout response"] | None:
    """Which response tokens spell out what the reading rules of their problems name; None if no problem has a rule."""
    if all(group.prompt.problem.reading is None for group in groups):
        return None
    reading = np.zeros(mask.shape, bool)
    responses = ((group.prompt.problem.reading, rollout.token_ids) for group in groups for rollout in group.rollouts)
    for row, (rule, token_ids) in enumerate(responses):
        if rule is not None:
            reading[row, : len(token_ids)] = read_tokens(token_ids, rule.spans, tokenizer)
    return torch.from_numpy(reading).to(mask.device) & mask


def read_tokens(token_ids: list[int], spans_of, tokenizer) -> list[bool]:
    """Whether each token holds a character of the spans that `spans_of(text)` finds in the decoded response.

    Tokens are decoded one by one, so that a token's place in the text is exact; a character that several byte tokens
    share is never part of a reading.
    """
    pieces = token_pieces(token_ids, tokenizer)
    bounds = list(accumulate(map(len, pieces), initial=0))  # token i is the characters bounds[i] to bounds[i + 1]
    read = [False] * len(pieces)
    for start, stop in spans_of("".join(pieces)):
        if start < stop:  # an empty one is of a group that matched nothing
            for token in range(bisect_right(bounds, start) - 1, bisect_left(bounds, stop)):
                read[token] = bool(pieces[token])  # a token without text holds no character of it
    return read


def token_pieces(token_ids: Sequence[int], tokenizer) -> list[str]:
    """Each token's own text."""
    return [_piece(token, tokenizer) for token in token_ids]


@lru_cache(maxsize=1 << 18)
def _piece(token: int, tokenizer) -> str:
    # Thousands of tokens a step, of a few hundred kinds. What it adds behind itself: some decoders (SentencePiece's)
    # take the space from whatever comes first.
    alone, twice = tokenizer.decode([token]), tokenizer.decode([token, token])
    return twice[len(alone) :] if twice.startswith(alone) else alone

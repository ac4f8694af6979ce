"""Which tokens of a response spell out what was read off the picture, where the problem's generator knows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch
from jaxtyping import Bool
from torch import Tensor


def reading_mask(groups, tokenizer, mask: Bool[Tensor, "rollout response"]) -> Bool[Tensor, "rollout response"] | None:
    """Which response tokens spell out what the reading rules of their problems name; None if no problem has a rule."""
    if all(group.prompt.problem.reading is None for group in groups):
        return None
    reading = torch.zeros(mask.shape, dtype=torch.bool)
    row = 0
    for group in groups:
        rule = group.prompt.problem.reading
        for rollout in group.rollouts:
            if rule is not None:
                reading[row, : len(rollout.token_ids)] = torch.tensor(
                    read_tokens(rollout.token_ids, rule.spans, tokenizer), dtype=torch.bool
                )
            row += 1
    return reading.to(mask.device) & mask


def read_tokens(token_ids: list[int], spans_of, tokenizer) -> list[bool]:
    """Whether each token holds a character of the spans that `spans_of(text)` finds in the decoded response.

    Tokens are decoded one by one, so that a token's place in the text is exact; a character that several byte tokens
    share is never part of a reading.
    """
    pieces = token_pieces(token_ids, tokenizer)
    text = "".join(pieces)
    read = bytearray(len(text))
    for start, stop in spans_of(text):
        read[start:stop] = b"\1" * (stop - start)
    ends = accumulate(map(len, pieces))
    return [1 in read[end - len(piece) : end] for piece, end in zip(pieces, ends, strict=True)]


def token_pieces(token_ids: Sequence[int], tokenizer) -> list[str]:
    """Each token's own text."""
    return [_piece(token, tokenizer) for token in token_ids]


@lru_cache(maxsize=1 << 18)
def _piece(token: int, tokenizer) -> str:
    # Thousands of tokens a step, of a few hundred kinds.
    return tokenizer.decode([token])

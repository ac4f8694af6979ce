"""Which paragraph of its response each token belongs to."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Sequence
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from atrl.credit.reading import token_pieces

BLANK_LINES = re.compile(r"\n\s*\n")
"""A line end, and white space up to a later one: one blank line or several, spaces on them or not."""


def paragraph_numbers(groups, tokenizer, mask: Bool[Tensor, "rollout response"]) -> Int[Tensor, "rollout response"]:
    """The paragraph of each token of the rollouts of `groups`, from 0 in every response; -1 where `mask` is false."""
    numbers = np.full(mask.shape, -1)
    special = frozenset(tokenizer.all_special_ids)
    responses = (rollout.token_ids for group in groups for rollout in group.rollouts)
    for row, token_ids in enumerate(responses):
        numbers[row, : len(token_ids)] = paragraphs_of(token_ids, tokenizer, special=special)
    return torch.from_numpy(numbers).to(mask.device).masked_fill(~mask, -1)


def paragraphs_of(token_ids: Sequence[int], tokenizer, *, special: Collection[int] = ()) -> list[int]:
    r"""The paragraph of each token of one response; it ends with the token that completes a blank line.

    KAWHI (Han et al., arXiv 2603.27375, 3.4) splits a response's text at "\n\n". Ours is what that leaves open: a line
    of spaces is blank too, several blank lines end one paragraph, and a paragraph holds something to be seen, so that
    neither leading blank lines, nor trailing ones, nor an end-of-turn token after them make one. Tokens are decoded one
    by one, as in `read_tokens`; those of `special` have no text.
    """
    decoded = zip(token_ids, token_pieces(token_ids, tokenizer), strict=True)
    pieces = ["" if token in special else piece for token, piece in decoded]
    ends = list(accumulate(map(len, pieces)))  # token i ends before character ends[i]
    text = "".join(pieces)
    completes = {bisect_left(ends, blank.end()) for blank in BLANK_LINES.finditer(text)}
    last = len(text.rstrip())
    numbers, number, seen = [], 0, False
    for token, piece in enumerate(pieces):
        numbers.append(number)
        seen = seen or bool(piece.strip())
        if token in completes and seen and ends[token] < last:
            number, seen = number + 1, False
    return numbers

"""Paragraphs of responses: by hand, against a count by characters, and as a batch carries them."""

from __future__ import annotations

import random
from itertools import groupby

import pytest
import torch

from atrl.credit.bound import BoundCredit, PictureScale
from atrl.credit.paragraphs import paragraphs_of
from atrl.credit.product import ProductCredit
from atrl.credit.query_key_cosine import QueryKeyCosineCredit
from atrl.credit.uniform import UniformCredit
from atrl.experience import build_experience
from atrl.splitting import trimmed
from atrl.types import Problem, Prompt, Rollout, RolloutGroup

PARAGRAPHS = QueryKeyCosineCredit(smoothing="paragraph")


class Pieces:
    """A tokenizer of which token i has the text i; those in angle brackets are special."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces
        self.all_special_ids = [number for number, piece in enumerate(pieces) if piece.startswith("<")]

    def decode(self, token_ids: list[int]) -> str:
        return "".join(self._pieces[token] for token in token_ids)


def numbers(*pieces: str) -> list[int]:
    tokenizer = Pieces(list(pieces))
    return paragraphs_of(range(len(pieces)), tokenizer, special=tokenizer.all_special_ids)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["One", ".\n\n", "Two", "\n", "\n", "Three"], [0, 0, 1, 1, 1, 2]),
        (["One", "\n", "line", "\n", "more"], [0] * 5),
        (["a", "\n", "\n", "\n", "b"], [0, 0, 0, 0, 1]),
        (["a", "\n\n", "\n\n", "b"], [0, 0, 0, 1]),
        (["a", "\n", " \t", "\n", "b"], [0, 0, 0, 0, 1]),
        (["a", "\r\n", "\r\n", "b"], [0, 0, 0, 1]),
        (["a", "\n\n", "  ", "b"], [0, 0, 1, 1]),  # indentation is of the line that it indents
        (["\n\n", "a", "\n\n", "b"], [0, 0, 0, 1]),
        (["a", "\n\n"], [0, 0]),
        (["a", "\n\n", "b", "\n\n", "<end>"], [0, 0, 1, 1, 1]),
        (["a", "\n\n", "<end>"], [0, 0, 0]),
        (["a", "\n", "<tag>", "\n", "b"], [0, 0, 0, 0, 1]),
        (["a", "\n\n", "", "b"], [0, 0, 1, 1]),
        (["a", "b\n\nc", "d"], [0, 0, 1]),  # a token is of one paragraph: the one that it ends
        (["a", "\n\nb\n\n", "c"], [0, 0, 1]),
        (["a", "b\n\nc", "\n\n", "d"], [0, 0, 1, 1]),
        (["a", "\n\nb", "<end>"], [0, 0, 0]),
        (["\n\n", "\n\n"], [0, 0]),
        ([], []),
    ],
)
def test_a_paragraph_ends_with_the_token_that_completes_a_blank_line(pieces, expected):
    assert numbers(*pieces) == expected


@pytest.mark.parametrize("seed", range(20))
def test_single_characters_against_runs_of_white_space(seed):
    """A break is the last line end of a run of white space with two or more, between what is to be seen."""
    text = "".join(random.Random(seed).choices("ab \n", weights=(1, 1, 2, 4), k=60))
    runs = [(blank, "".join(run)) for blank, run in groupby(text, str.isspace)]
    expected, number = [], 0
    for place, (blank, run) in enumerate(runs):
        inside = 0 < place < len(runs) - 1
        after = run.rindex("\n") + 1 if blank and inside and run.count("\n") > 1 else len(run)
        expected += [number] * after + [number + 1] * (len(run) - after)
        number += blank and inside and run.count("\n") > 1
    assert numbers(*text) == expected and number > 1


def group(processor, *texts: str) -> RolloutGroup:
    prompt = Prompt(Problem("p", "?", "!"), [1, 2], {}, (), [1, 2])
    ids = [processor.tokenizer(text)["input_ids"] for text in texts]
    return RolloutGroup(prompt, [Rollout(own, [0.0] * len(own), True) for own in ids], list(texts), 0)


@pytest.fixture
def groups(processor) -> list[RolloutGroup]:
    return [group(processor, "x\n\ny", "z"), group(processor, "1\n\n2\n\n3")]


def prepared(groups, processor, scheme):
    batch = build_experience(groups, pad_id=0)
    return BoundCredit(scheme, None, PictureScale((), ()), processor.tokenizer).prepare(batch, groups)


def test_a_batch_has_the_paragraphs_of_each_response(groups, processor):
    """The tiny tokenizer has a token a character here; padding is of no paragraph."""
    batch = prepared(groups, processor, PARAGRAPHS)
    expected = [[0, 0, 0, 1, -1, -1, -1], [0, -1, -1, -1, -1, -1, -1], [0, 0, 0, 1, 1, 1, 2]]
    assert batch.paragraphs.tolist() == expected
    assert torch.equal(batch.paragraphs < 0, ~batch.response_mask)


@pytest.mark.parametrize(
    ("scheme", "asks"),
    [
        (PARAGRAPHS, True),
        (ProductCredit(schemes=[UniformCredit(), PARAGRAPHS]), True),
        (QueryKeyCosineCredit(), False),
        (ProductCredit(schemes=[UniformCredit()]), False),
    ],
)
def test_only_schemes_that_ask_get_them(groups, processor, scheme, asks):
    assert (prepared(groups, processor, scheme).paragraphs is not None) is asks is scheme.needs_paragraphs


def test_chosen_rows_and_trimmed_ones_keep_theirs(groups, processor):
    batch = prepared(groups, processor, PARAGRAPHS)
    turned = batch.rows(torch.tensor([2, 0, 1]))
    assert torch.equal(turned.paragraphs, batch.paragraphs[[2, 0, 1]])
    part = trimmed(turned.rows(slice(1, 3)))
    assert part.paragraphs.tolist() == [[0, 0, 0, 1], [0, -1, -1, -1]]
    assert part.paragraphs.is_contiguous() and trimmed(build_experience(groups, pad_id=0)).paragraphs is None


def test_an_untrained_token_is_of_no_paragraph(groups, processor):
    from dataclasses import replace

    batch = build_experience(groups, pad_id=0)
    mask = batch.response_mask.clone()
    mask[0] = False
    bound = BoundCredit(PARAGRAPHS, None, PictureScale((), ()), processor.tokenizer)
    found = bound.prepare(replace(batch, response_mask=mask), groups).paragraphs
    assert (found[0] == -1).all() and found[1, 0] == 0


def test_special_tokens_of_the_tokenizer_have_no_text(processor):
    """The end of a turn after a blank line is of the last paragraph."""
    one = group(processor, "x\n\ny\n\n<|im_end|>")
    found = prepared([one], processor, PARAGRAPHS).paragraphs[0].tolist()
    assert found == [0, 0, 0, 1, 1, 1, 1] and len(one.rollouts[0].token_ids) == 7

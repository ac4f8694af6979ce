"""Sliding windows that hide the picture: what the reader says of it, and that a token gains nothing by being blind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from credit_evidence import batch_of

from atrl.credit.connectivity import head_contrast
from atrl.credit.kawhi import KawhiCredit
from atrl.credit.query_key import QueryKeyCapture, QueryKeyReader, QueryKeyRequest
from atrl.credit.query_key_cosine import QueryKeyCosineCredit, seeing_heads_mean
from atrl.credit.regions import padded_regions
from atrl.types import Evidence

IDS = torch.tensor([[9, 9, 1, 1, 2, 2, 2]])
BATCH = replace(batch_of([(3, 2)]), input_ids=IDS, attention_mask=torch.ones_like(IDS))
"""Images at 0 and 1, responses predicted from 3 to 5: a window of 3 shows column 1 to the first token and then none,
one of 4 both columns to the first and one to the next."""


def random_vectors(columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four query heads in groups of two, width 6."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 4, columns, 6, generator=generator), torch.randn(1, 2, columns, 6, generator=generator)


def read(request: QueryKeyRequest, windows: list[int | None], batch=BATCH, vectors=None) -> QueryKeyCapture:
    """Of layers that have the same queries and keys, and these windows."""
    query, key = vectors or random_vectors(batch.input_ids.shape[1])
    reader = QueryKeyReader(request, padded_regions(batch, [9], request.row))
    for layer, window in enumerate(windows):
        reader.read_attention(layer, query, key, scaling=1.0, sliding_window=window)
    return reader.result()


def assign(scheme, capture: QueryKeyCapture, batch):
    zeros = torch.zeros(batch.response_mask.shape)
    return scheme.assign(batch, Evidence(zeros, zeros, {scheme.requests[0]: capture}))


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_sliding_window_hides_the_picture(pooling):
    found = read(QueryKeyRequest(pooling=pooling), [3])
    query, key = random_vectors(7)
    keys = key.repeat_interleave(2, dim=1)
    expected = torch.nn.functional.cosine_similarity(query[0, :, 3], keys[0, :, 1], dim=1)
    torch.testing.assert_close(found.score[0, :, 0], expected)
    assert found.seen.tolist() == [[[True, False, False]] * 4]


def test_each_layer_says_what_it_shows():
    """A layer without a window beside two that have one: it shows the picture to all."""
    found = read(QueryKeyRequest(), [3, None, 4])
    shown = [[True, False, False]] * 4 + [[True] * 3] * 4 + [[True, True, False]] * 4
    assert found.seen.tolist() == [shown]


def test_padding_and_a_rollout_without_a_picture_see_nothing():
    ids = torch.tensor([[9, 9, 1, 1, 2, 2, 0], [1, 1, 1, 1, 2, 2, 2]])
    batch = replace(batch_of([(2, 2), (3, 0)]), input_ids=ids, attention_mask=(ids > 0).long())
    vectors = tuple(part.expand(2, -1, -1, -1) for part in random_vectors(7))
    found = read(QueryKeyRequest(), [6], batch, vectors)
    assert found.seen.tolist() == [[[True, True, False]] * 4, [[False] * 3] * 4]


def test_without_windows_nothing_is_said():
    assert read(QueryKeyRequest(), [None, None]).seen is None


def test_image_tokens_that_no_layer_shows_are_0():
    query, key = random_vectors(7)
    keys = key.repeat_interleave(2, dim=1)
    cosines = torch.nn.functional.cosine_similarity(query[0, :, 3:6, None], keys[0, :, None, :2], dim=-1).amax(dim=0)
    for windows, shown in [([3], [[0, 1], [0, 0], [0, 0]]), ([3, 4], [[1, 1], [0, 1], [0, 0]])]:
        expected = torch.where(torch.tensor(shown) > 0, cosines, 0.0)
        torch.testing.assert_close(read(QueryKeyRequest(detail=True), windows).image[0], expected)


# Heads that see, by hand.

SCORES = torch.tensor([[[-0.5, -0.9, 0.0, 0.0, -9.0], [-0.3, -0.1, -0.6, 0.0, -9.0], [-0.2, -0.4, -0.2, 0.0, -9.0]]])
SEEN = torch.tensor([[[1, 1, 0, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 0, 1]]]).bool()
"""Three heads over four tokens and one of padding: token 2 is hidden from the first head, token 3 from all.
What stands at padding says nothing."""
MASK = torch.tensor([[1, 1, 1, 1, 0]]).bool()


def test_the_mean_is_that_of_the_heads_that_see():
    """Of three, three and two heads: −1/3, −1.4/3 and −0.4; the blind token has the least of these."""
    found = seeing_heads_mean(SCORES, MASK, SEEN, top_heads=None)
    torch.testing.assert_close(found[:, :4], torch.tensor([[-1 / 3, -1.4 / 3, -0.4, -1.4 / 3]]))


def test_contrast_is_that_of_the_tokens_that_see():
    """Deviations: 0.2 of (−0.5, −0.9), √(0.38/9) of (−0.3, −0.1, −0.6), √(0.08/9) of (−0.2, −0.4, −0.2). With a 0 for
    each blind token the first would have 0.377."""
    expected = torch.tensor([[0.2, (0.38 / 9) ** 0.5, (0.08 / 9) ** 0.5]])
    torch.testing.assert_close(head_contrast(SCORES, MASK, SEEN), expected)


@pytest.mark.parametrize(
    ("top_heads", "expected"),
    [
        (1, [-0.3, -0.1, -0.6, -0.6]),  # the second head
        (2, [-0.4, -0.5, -0.4, -0.5]),  # and the first; of token 2, which that one hides, the third
        (9, [-1 / 3, -1.4 / 3, -0.4, -1.4 / 3]),  # all
    ],
)
def test_top_heads_are_those_that_see_the_token(top_heads, expected):
    found = seeing_heads_mean(SCORES, MASK, SEEN, top_heads=top_heads)
    torch.testing.assert_close(found[0, :4], torch.tensor(expected))


@pytest.mark.parametrize("options", [{"reduction": "mean"}, {"top_heads": 2}])
def test_where_every_token_sees_the_heads_are_those_of_ever(options):
    scheme, batch = QueryKeyCosineCredit(smoothing="none", **options), batch_of([(40, 4)])
    scores = torch.randn(1, 6, 40, generator=torch.Generator().manual_seed(0))
    plain = QueryKeyCapture(scores, torch.ones(1, 4, dtype=torch.bool), None)
    one, other = (assign(scheme, found, batch) for found in (plain, replace(plain, seen=torch.ones_like(scores) > 0)))
    torch.testing.assert_close(other.density, one.density)
    torch.testing.assert_close(other.weights, one.weights)


# Weights.

SCHEMES = [
    QueryKeyCosineCredit(smoothing="none", reduction="mean", pooling="mean"),
    QueryKeyCosineCredit(smoothing="none"),
    QueryKeyCosineCredit(window=2),
    QueryKeyCosineCredit(window=2, weights="anchors"),
    KawhiCredit(layers=None),
    KawhiCredit(layers=None, reduction="mean"),
]


def hidden_from_most() -> tuple:
    """12 tokens of two a paragraph, of which a window of 10 shows the picture to the first 7 or 8: their cosines are
    all about −0.9."""
    ids = torch.tensor([[9] * 8 + [1] * 2 + [2] * 12])
    batch = replace(batch_of([(12, 8)]), input_ids=ids, attention_mask=torch.ones_like(ids))
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(16, generator=generator)
    query = 0.3 * torch.randn(1, 2, 22, 16, generator=generator) + direction
    key = 0.3 * torch.randn(1, 2, 22, 16, generator=generator) - direction
    return replace(batch, paragraphs=(torch.arange(12) // 2)[None]), (query, key)


@pytest.mark.parametrize("scheme", SCHEMES, ids=range(len(SCHEMES)))
def test_blind_tokens_never_stand_out(scheme):
    batch, vectors = hidden_from_most()
    capture = read(scheme.requests[0], [10], batch, vectors)
    blind = ~capture.seen[0, 0]
    assert 4 <= blind.sum() <= 5 and capture.score[0, :, ~blind].max() < -0.5, "or zeros would rank low anyway"
    output = assign(scheme, capture, batch)
    assert (output.weights[0, 8:] == output.weights.min()).all() and not output.anchors[0, 8:].any()
    assert output.weights[0, :8].max() > output.weights.min()


def test_a_layer_that_shows_the_picture_speaks_for_all():
    """Beside a layer without a window the same queries give every token what they would without any."""
    batch, vectors = hidden_from_most()
    scheme = QueryKeyCosineCredit(smoothing="none", reduction="mean", pooling="mean")
    captures = [read(scheme.requests[0], windows, batch, vectors) for windows in ([None], [9, None])]
    alone, beside = (assign(scheme, capture, batch).density[0, 8:] for capture in captures)
    torch.testing.assert_close(beside, alone)
    assert alone.unique().numel() == 4


def test_a_response_that_is_blind_throughout_weighs_1():
    batch, vectors = hidden_from_most()
    for scheme in SCHEMES:
        output = assign(scheme, read(scheme.requests[0], [2], batch, vectors), batch)
        assert torch.equal(output.weights, batch.response_mask.float()) and not output.anchors.any()


@pytest.mark.parametrize("scheme", SCHEMES, ids=range(len(SCHEMES)))
def test_the_least_score_is_that_of_the_response(scheme):
    """Beside another that scores lower, and padded: the same weights."""
    images = torch.ones(2, 4, dtype=torch.bool)
    one = QueryKeyCapture(SCORES[..., :4], images[:1], None, SEEN[..., :4])
    two = QueryKeyCapture(torch.cat([SCORES, SCORES - 1]), images, None, torch.cat([SEEN, ~SEEN]))
    alone, both = assign(scheme, one, batch_of([(4, 4)])), assign(scheme, two, batch_of([(4, 4), (5, 4)]))
    assert torch.equal(both.weights[0, :4], alone.weights[0]) and torch.equal(both.anchors[0, :4], alone.anchors[0])

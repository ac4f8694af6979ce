"""Spans and weights by hand, and the reader against queries and keys computed from the model's own layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from credit_evidence import batch_of

from atrl.credit import query_key
from atrl.credit.clustering import filled
from atrl.credit.probe import AttentionProbe
from atrl.credit.query_key import QueryKeyCapture, QueryKeyReader, QueryKeyRequest
from atrl.credit.query_key_cosine import QueryKeyCosineCredit
from atrl.credit.regions import packed_regions, padded_regions
from atrl.credit.spans import span_means
from atrl.experience import micro_batches
from atrl.models.policy import picture_inputs, response_logits
from atrl.types import Evidence

SCORES = torch.tensor([[[0.4, 0.2, 0.9, 0.7, -0.3, 0.0, 9.0], [0.1] * 7]])
"""Two heads over six tokens and one of padding; the second tells nothing apart."""
BATCH = batch_of([(6, 4)], padding=1)


def assign(scheme, scores=SCORES, image=None):
    capture = QueryKeyCapture(scores, torch.ones(1, 4, dtype=torch.bool), image)
    return scheme.assign(BATCH, Evidence(torch.zeros(1, 7), torch.zeros(1, 7), {scheme.requests[0]: capture}))


def test_windows_of_two_tokens_by_hand():
    """Means 0.3, 0.8 and −0.15: a line from 1 at −0.15 to 3 at 0.8 gives 1 + 2·0.45/0.95 = 37/19 at 0.3."""
    output = assign(QueryKeyCosineCredit(window=2, top_heads=1))
    middle = 37 / 19
    expected = torch.tensor([[middle, middle, 3, 3, 1, 1, 0]]) * 6 / (2 * (middle + 4))
    torch.testing.assert_close(output.weights, expected)
    torch.testing.assert_close(output.density, torch.tensor([[0.3, 0.3, 0.8, 0.8, -0.15, -0.15, 0.0]]))
    assert output.anchors.nonzero()[:, 1].tolist() == [2]  # round(0.15·6), the best of the best window


def test_a_last_window_may_be_short():
    """Of four and two tokens: means 0.55 and −0.15, so weights 3 and 1."""
    output = assign(QueryKeyCosineCredit(window=4, top_heads=1))
    torch.testing.assert_close(output.weights, torch.tensor([[3.0, 3, 3, 3, 1, 1, 0]]) * 6 / 14)


def test_two_levels_go_by_window_first():
    """Three anchors: both of window 1, then the better of window 0, though token 1 is no worse than token 5."""
    output = assign(QueryKeyCosineCredit(window=2, top_heads=1, weights="anchors", anchor_ratio=0.5))
    assert output.anchors.nonzero()[:, 1].tolist() == [0, 2, 3]
    torch.testing.assert_close(output.weights, torch.tensor([[3.0, 1, 3, 3, 1, 1, 0]]) * 6 / 12)


def test_without_smoothing_each_token_is_its_own_span():
    output = assign(QueryKeyCosineCredit(smoothing="none", top_heads=1))
    torch.testing.assert_close(output.density[0], torch.tensor([0.4, 0.2, 0.9, 0.7, -0.3, 0.0, 0.0]))
    assert output.weights[0].argmax() == 2 and output.weights[0, :6].argmin() == 4


def test_the_mean_takes_all_heads():
    output = assign(QueryKeyCosineCredit(smoothing="none", reduction="mean"))
    torch.testing.assert_close(output.density[0], torch.tensor([0.25, 0.15, 0.5, 0.4, -0.1, 0.05, 0.0]))


def test_clusters_join_tokens_near_the_same_image_tokens():
    """Even tokens point at columns 0 and 1, odd ones at 2 and 3: means (0.4 + 0.9 − 0.3)/3 and 0.9/3."""
    image = torch.zeros(1, 7, 4)
    image[0, 0:6:2, :2], image[0, 1:6:2, 2:] = torch.tensor([0.5, 0.4]), torch.tensor([0.3, 0.6])
    scheme = QueryKeyCosineCredit(smoothing="cluster", num_clusters=2, top_heads=1)
    assert scheme.requests[0].detail and not QueryKeyCosineCredit().requests[0].detail
    output = assign(scheme, image=image)
    torch.testing.assert_close(output.density, torch.tensor([[1 / 3, 0.3, 1 / 3, 0.3, 1 / 3, 0.3, 0.0]]))
    torch.testing.assert_close(output.weights, torch.tensor([[1.5, 0.5, 1.5, 0.5, 1.5, 0.5, 0.0]]))


def test_a_single_cluster_is_the_whole_response():
    """The mean of all six scores, 1.9/6."""
    scheme = QueryKeyCosineCredit(smoothing="cluster", num_clusters=1, top_heads=1)
    output = assign(scheme, image=torch.rand(1, 7, 4))
    torch.testing.assert_close(output.density, torch.tensor([[1.9 / 6] * 6 + [0.0]]))
    assert torch.equal(output.weights, BATCH.response_mask.float())


def test_clusters_are_the_same_wherever_they_are_cut():
    """The first batch is worked on here, the second by the process that was opened; windows need none."""
    generator = torch.Generator().manual_seed(3)
    evidence = [(torch.randn(1, 2, 7, generator=generator), torch.rand(1, 7, 4, generator=generator)) for _ in "ab"]
    options = {"smoothing": "cluster", "num_clusters": 3}
    here, elsewhere = (QueryKeyCosineCredit(**options, workers=workers) for workers in (0, 1))
    windows = QueryKeyCosineCredit(workers=1)
    try:
        for scheme in (here, elsewhere, windows):
            scheme.open()
        assert [scheme.works_elsewhere for scheme in (here, elsewhere, windows)] == [False, True, False]
        found = [[assign(scheme, *read) for read in evidence] for scheme in (here, elsewhere)]
    finally:
        elsewhere.close()
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.weights, other.weights) and torch.equal(one.anchors, other.anchors)
        assert torch.equal(one.density, other.density) and len(one.density[0, :6].unique()) == 3


def test_rows_that_were_worked_on_are_filled_in_and_what_they_started_from_stays():
    start = torch.tensor([[1.0, 1, 1], [2, 2, 2], [3, 3, 3]])
    values = [np.array([7.0, 8.0]), np.array([9.0])]
    assert filled(start, [2, 0], values).tolist() == [[9, 1, 1], [2, 2, 2], [7, 8, 3]]
    assert start.tolist() == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]


def test_without_a_picture_all_weigh_the_same():
    output = assign(QueryKeyCosineCredit(rest_weight=0.0), 0 * SCORES)
    assert torch.equal(output.weights, BATCH.response_mask.float()) and not output.anchors.any()


def test_an_empty_span_ranks_last():
    means = span_means(np.array([0.5, -0.5, 0.1]), np.array([2, 0, 2]))
    assert means.tolist() == pytest.approx([-0.5, -np.inf, 0.3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, r"^credit\.window must be at least 1, got 0"),
        ({"top_heads": 0}, r"^credit\.top_heads must be at least 1, got 0"),
        ({"num_clusters": 0}, r"^credit\.num_clusters must be at least 1, got 0"),
        ({"workers": -1}, r"^credit\.workers must be 0 .* or more, got -1: try auto$"),
        ({"temperature": 0.0}, r"^credit\.temperature must be positive, got 0\.0: try 0\.1$"),
        ({"mixing": 1.5}, r"^credit\.mixing must be in \[0, 1\], got 1\.5: try 0\.1$"),
        ({"mixing": -0.5}, r"^credit\.mixing must be in \[0, 1\], got -0\.5"),
        ({"rest_weight": 9.0}, r"^credit\.rest_weight must be between 0 and .* got 9\.0 and 3\.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        QueryKeyCosineCredit(**options)


# The reader.


def read(policy, batch, *requests):
    probe = AttentionProbe(policy, requests)
    with torch.no_grad(), probe.capture(batch) as recorder:
        response_logits(policy, batch)
    probe.detach()
    return recorder.results()


def queries_and_keys(policy, batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each layer, from its own projections and transformers' rotary embedding: [rollout head token width]."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

    inputs = []

    def keep(module, arguments, options):
        inputs.append((options["hidden_states"], options["position_embeddings"]))

    layers = policy.get_decoder().layers
    handles = [layer.self_attn.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        policy(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            **picture_inputs(policy, batch.input_ids, batch.attention_mask, batch.pixels),
        )
    for handle in handles:
        handle.remove()
    found = []
    for layer, (hidden, (cosine, sine)) in zip(layers, inputs, strict=True):
        attention = layer.self_attn
        shape = (*hidden.shape[:2], -1, attention.head_dim)
        with torch.no_grad():
            query, key = (part(hidden).view(shape).transpose(1, 2) for part in (attention.q_proj, attention.k_proj))
            query, key = apply_rotary_pos_emb(query, key, cosine, sine)
        found.append((query, key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)))
    return found


def plain(query, key, batch, image_token_id: int, *, shift: int, pooling: str) -> torch.Tensor:
    """[rollout head response], token by token."""
    expected = torch.zeros(batch.size, query.shape[1], batch.response_length)
    for row in range(batch.size):
        images = key[row][:, batch.input_ids[row] == image_token_id]
        for token in range(int(batch.response_mask[row].sum())):
            if images.shape[1]:
                own = query[row, :, batch.prompt_length + token - shift]
                cosines = torch.nn.functional.cosine_similarity(own[:, None], images, dim=2)
                expected[row, :, token] = cosines.mean(dim=1) if pooling == "mean" else cosines.amax(dim=1)
    return expected


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize(("row", "shift"), [("own", 0), ("predicting", 1)])
def test_the_reader_agrees_with_the_models_queries_and_keys(policy, batch, row, shift, pooling):
    request = QueryKeyRequest(row=row, pooling=pooling)
    found = read(policy, batch, request)[request]
    vectors = queries_and_keys(policy, batch)
    options = {"shift": shift, "pooling": pooling}
    expected = torch.cat([plain(*pair, batch, policy.config.image_token_id, **options) for pair in vectors], dim=1)
    torch.testing.assert_close(found.score, expected, atol=1e-5, rtol=0)
    assert found.image is None and expected.std() > 1e-2, "a test of constants would prove nothing"
    counts = (batch.input_ids == policy.config.image_token_id).sum(dim=1)
    assert torch.equal(found.image_mask.sum(dim=1), counts) and counts[1] == 0 and (expected[1] == 0).all()


def test_one_layer_and_its_image_rows(policy, batch):
    """The largest cosine of any head with each image token."""
    request, everything = QueryKeyRequest(layers=(1,), detail=True), QueryKeyRequest()
    found = read(policy, batch, request, everything)
    query, key = queries_and_keys(policy, batch)[1]
    heads = query.shape[1]
    assert torch.equal(found[request].score, found[everything].score[:, heads : 2 * heads])
    for row in range(batch.size):
        images = key[row][:, batch.input_ids[row] == policy.config.image_token_id]
        length = int(batch.response_mask[row].sum())
        rows = query[row, :, batch.prompt_length - 1 : batch.prompt_length - 1 + length]
        cosines = torch.nn.functional.cosine_similarity(rows[:, :, None], images[:, None], dim=3).amax(dim=0)
        image = found[request].image[row]
        torch.testing.assert_close(image[:length, : images.shape[1]], cosines, atol=1e-5, rtol=0)
        assert (image[length:] == 0).all() and (image[:, images.shape[1] :] == 0).all()


def test_the_last_layer_and_some_heads(policy, batch):
    """Of 3 layers of 4 heads; heads come in order, each once, and the image rows are theirs alone."""
    last, three = QueryKeyRequest(layers="last"), QueryKeyRequest(layers=(2,), heads=(3, 0, 3), detail=True)
    found = read(policy, batch, last, three)
    query, key = queries_and_keys(policy, batch)[2]
    expected = plain(query, key, batch, policy.config.image_token_id, shift=1, pooling="max")
    torch.testing.assert_close(found[last].score, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[three].score, expected[:, [0, 3]], atol=1e-5, rtol=0)
    largest = torch.where(found[three].image_mask[:, None], found[three].image, -1.0).amax(dim=2)[0]
    torch.testing.assert_close(largest[batch.response_mask[0]], expected[0, [0, 3]].amax(dim=0)[batch.response_mask[0]])


def test_heads_beyond_the_layers_are_refused(policy, batch):
    with pytest.raises(ValueError, match=r"^credit\.head_numbers names head 4: the layer has heads 0 to 3$"):
        read(policy, batch, QueryKeyRequest(heads=(0, 4)))


def test_chunks_change_nothing(policy, batch, monkeypatch):
    from atrl.credit import blocks

    requests = [QueryKeyRequest(pooling="mean"), QueryKeyRequest(detail=True)]
    whole = read(policy, batch, *requests)
    monkeypatch.setattr(blocks, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(query_key, "CHUNK_ELEMENTS", 1)
    cut = read(policy, batch, *requests)
    for request in requests:
        torch.testing.assert_close(cut[request].score, whole[request].score, atol=1e-6, rtol=0)
    torch.testing.assert_close(cut[requests[1]].image, whole[requests[1]].image, atol=1e-6, rtol=0)


def test_micro_batches_read_what_the_batch_does(policy, batch):
    request = QueryKeyRequest(detail=True)
    whole = read(policy, batch, request)[request]
    for rows in micro_batches(batch.size, 1):
        part = read(policy, batch.rows(rows), request)[request]
        width = part.image_mask.shape[1]
        assert torch.equal(part.image_mask, whole.image_mask[rows, :width])
        torch.testing.assert_close(part.score, whole.score[rows], atol=1e-5, rtol=0)
        torch.testing.assert_close(part.image, whole.image[rows, ..., :width], atol=1e-5, rtol=0)
        assert not whole.image_mask[rows, width:].any() and not whole.image[rows, ..., width:].any()


def test_a_model_that_is_not_tapped_is_noticed(policy, batch):
    probe = AttentionProbe(policy, [QueryKeyRequest()])
    probe.detach()
    with torch.no_grad(), probe.capture(batch) as recorder:
        response_logits(policy, batch)
    with pytest.raises(AssertionError, match="saw no layer"):
        recorder.results()


def random_vectors(columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four query heads in groups of two, width 6."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 4, columns, 6, generator=generator), torch.randn(1, 2, columns, 6, generator=generator)


def test_packed_sequences_see_their_own_picture_alone():
    """A row of two sequences, image token 9: the second's queries are compared with its one key."""
    input_ids = torch.tensor([[9, 9, 1, 2, 9, 1, 3, 4, 0]])
    segments = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2, 0]])
    is_response = torch.tensor([[0, 0, 0, 1, 0, 0, 1, 1, 0]]).bool()
    query, key = random_vectors(9)
    reader = QueryKeyReader(QueryKeyRequest(), packed_regions(input_ids, segments, is_response, [9]))
    reader.read_attention(0, query, key, scaling=1.0)
    found = reader.result().score
    cosine = torch.nn.functional.cosine_similarity
    keys = key.repeat_interleave(2, dim=1)
    torch.testing.assert_close(found[0, :, 0], cosine(query[0, :, 2, None], keys[0, :, :2], dim=2).amax(dim=1))
    torch.testing.assert_close(found[1], cosine(query[0, :, 5:7], keys[0, :, 4, None], dim=2))


def test_queries_of_the_last_columns_suffice():
    """Where prompts were run before, only their keys are there."""
    ids = torch.tensor([[9, 9, 1, 1, 2, 2, 2]])
    batch = replace(batch_of([(3, 2)]), input_ids=ids, attention_mask=torch.ones_like(ids))
    query, key = random_vectors(7)
    scores = []
    for first in (0, 3):
        reader = QueryKeyReader(QueryKeyRequest(), padded_regions(batch, [9]))
        reader.read_attention(0, query[:, :, first:], key, scaling=1.0)
        scores.append(reader.result().score)
    assert scores[0].abs().min() > 0 and torch.equal(*scores)

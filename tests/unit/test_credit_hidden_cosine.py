"""PEPO's weights by hand, and its reader against the hidden states that the model returns."""

from __future__ import annotations

from dataclasses import replace
from math import exp, tanh
from types import SimpleNamespace

import pytest
import torch
from credit_evidence import batch_of

from atrl.credit import hidden
from atrl.credit.hidden import HiddenRequest, decoder_layers, picture_cosine
from atrl.credit.hidden_cosine import HiddenCosineCredit, minmax
from atrl.credit.probe import AttentionProbe, Recorder
from atrl.credit.regions import packed_regions, padded_regions
from atrl.experience import micro_batches
from atrl.models.policy import picture_inputs, response_logits
from atrl.types import Evidence

SCORE = torch.tensor([[0.1, 0.3, -0.2, 9.0], [0.4, 0.2, 0.0, 0.0]])
ENTROPY = torch.tensor([[2.0, 1.0, 0.0, 9.0], [0.5, 0.5, 0.0, 0.0]])
"""Three tokens and two; what stands in the padding is larger than all."""
BATCH = batch_of([(3, 4), (2, 4)])


def assign(scheme, score=SCORE):
    score = torch.nn.functional.pad(score, (0, BATCH.response_length - score.shape[1]))[:, : BATCH.response_length]
    entropy = ENTROPY[:, : BATCH.response_length]
    return scheme.assign(BATCH, Evidence(torch.zeros_like(score), entropy, {scheme.requests[0]: score}))


def softmax(*values: float) -> list[float]:
    """Scaled to mean 1."""
    total = sum(map(exp, values))
    return [len(values) * exp(value) / total for value in values]


def test_softmax_of_the_cosine():
    """At temperature 0.1 the logits are 1, 3, −2 and 4, 2."""
    output = assign(HiddenCosineCredit(temperature=0.1))
    assert output.weights[0].tolist() == pytest.approx(softmax(1, 3, -2), rel=1e-5)
    assert output.weights[1].tolist() == pytest.approx([*softmax(4, 2), 0], rel=1e-5)
    assert output.anchors.nonzero().tolist() == [[0, 1], [1, 0]]


def test_the_gate_favours_near_and_uncertain_tokens():
    """m = 0.6 + 1, 1 + 0.5, 0 + 0 of mean 3.1/3; and 1 + 0, 0 + 0 (equal entropies) of mean 1/2."""
    output = assign(HiddenCosineCredit(gate="entropy", gate_strength=0.5, temperature=0.1))
    gates = [1 + 0.5 * tanh(m - 3.1 / 3) for m in (1.6, 1.5, 0.0)]
    expected = softmax(*[10 * v * g for v, g in zip((0.1, 0.3, -0.2), gates, strict=True)])
    assert output.weights[0].tolist() == pytest.approx(expected, rel=1e-5)
    gates = [1 + 0.5 * tanh(0.5), 1 + 0.5 * tanh(-0.5)]
    assert output.weights[1].tolist() == pytest.approx([*softmax(4 * gates[0], 2 * gates[1]), 0], rel=1e-5)


def test_two_levels():
    """One of three: 3 + 1 + 1 over 3; one of two: 3 + 1 over 2."""
    output = assign(HiddenCosineCredit(weights="anchors"))
    torch.testing.assert_close(output.weights, torch.tensor([[0.6, 1.8, 0.6], [1.5, 0.5, 0.0]]))


def test_a_sharp_softmax_neither_overflows_nor_vanishes():
    output = assign(HiddenCosineCredit(temperature=1e-4))
    assert output.weights.tolist() == [[0, 3, 0], [2, 0, 0]]


def test_without_a_picture_all_weigh_the_same():
    for options in ({}, {"gate": "entropy"}, {"weights": "anchors", "rest_weight": 0.0}):
        output = assign(HiddenCosineCredit(**options), 0 * SCORE)
        assert torch.equal(output.weights, BATCH.response_mask.float()) and not output.anchors.any()


def test_minmax_by_hand():
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    values = torch.tensor([[2.0, 6.0, 3.0, 99.0], [5.0, 5.0, 0.0, 1.0]])
    assert minmax(values, mask).tolist() == [[0, 1, 0.25, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"^credit\.temperature must be positive, got 0\.0"),
        ({"gate_strength": 1.0}, r"^credit\.gate_strength must be in \[0, 1\), got 1\.0"),
        ({"anchor_ratio": 2.0}, r"^credit\.anchor_ratio must be in \(0, 1\], got 2\.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        HiddenCosineCredit(**options)


# The reader.


def read(policy, batch, *requests):
    probe = AttentionProbe(policy, requests)
    with torch.no_grad(), probe.capture(batch) as recorder:
        response_logits(policy, batch)
    probe.detach()
    return recorder.results()


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_mixed_precision_is_read_in_float32(pooling):
    """Cosines lie close together: in bfloat16 tokens would tie."""
    ids = torch.tensor([[9, 9, 1, 2, 2, 2], [9, 9, 1, 2, 2, 2]])
    states = 1 + 0.3 * torch.randn(*ids.shape, 16, generator=torch.Generator().manual_seed(0))
    regions = padded_regions(replace(BATCH, input_ids=ids, attention_mask=torch.ones_like(ids)), [9], "own")
    plain, mixed = (HiddenRequest(pooling=pooling).reader(None, regions) for _ in range(2))
    plain.read_hidden(0, states)
    with torch.autocast("cpu", torch.bfloat16):
        mixed.read_hidden(0, states)
    assert plain.result().any() and torch.equal(plain.result(), mixed.result())


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_in_a_batch_without_pictures_nothing_is_near(pooling):
    ids = torch.tensor([[1, 2, 2], [1, 2, 2]])
    regions = padded_regions(replace(BATCH, input_ids=ids, attention_mask=torch.ones_like(ids)), [9], "own")
    assert regions.columns.shape == (2, 0)
    found = picture_cosine(torch.ones(2, 3, 4), regions, pooling=pooling)
    assert torch.equal(found, torch.zeros(regions.rows.shape))


def test_a_decoder_that_keeps_its_layers_elsewhere_is_named():
    text = SimpleNamespace(num_hidden_layers=2)
    for decoder in (SimpleNamespace(), SimpleNamespace(layers=[torch.nn.Identity()])):
        model = SimpleNamespace(
            get_decoder=lambda own=decoder: own, config=SimpleNamespace(get_text_config=lambda: text)
        )
        with pytest.raises(AssertionError, match="can't find the 2 decoder layers of SimpleNamespace"):
            decoder_layers(model)


def test_a_layer_that_runs_twice_counts_once():
    """As when it is computed again for its gradient."""
    ids = torch.tensor([[9, 9, 1, 2, 2, 2], [9, 9, 1, 2, 2, 2]])
    first, second = torch.randn(2, *ids.shape, 16, generator=torch.Generator().manual_seed(0))
    regions = padded_regions(replace(BATCH, input_ids=ids, attention_mask=torch.ones_like(ids)), [9], "own")
    once, twice = (HiddenRequest().reader(None, regions) for _ in range(2))
    for reader, order in ((once, (0, 1)), (twice, (0, 0, 1, 0))):
        for layer in order:
            reader.read_hidden(layer, (first, second)[layer])
    assert once.result().any() and torch.equal(once.result(), twice.result())


def test_the_time_of_reading_is_known():
    """Credit's share of a step is counted from it."""
    ids = torch.tensor([[9, 9, 1, 2, 2, 2], [9, 9, 1, 2, 2, 2]])
    regions = padded_regions(replace(BATCH, input_ids=ids, attention_mask=torch.ones_like(ids)), [9], "own")
    reader = HiddenRequest().reader(None, regions)
    recorder = Recorder({HiddenRequest(): reader})
    assert recorder.seconds == 0
    reader.read_hidden(0, torch.ones(*ids.shape, 16))
    assert recorder.seconds == reader.seconds > 0


def layer_outputs(policy, batch) -> list[torch.Tensor]:
    """What each decoder layer hands on, by transformers' own account. Its last entry has the final norm on it, and so
    the last layer's own output is taken on its way there."""
    kept = []
    norm = policy.get_decoder().norm
    handle = norm.register_forward_pre_hook(lambda module, arguments: kept.append(arguments[0]))
    with torch.no_grad():
        output = policy(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
            **picture_inputs(policy, batch.input_ids, batch.attention_mask, batch.pixels),
        )
        handle.remove()
        (last,) = kept
        assert torch.equal(norm(last), output.hidden_states[-1])
    return [*output.hidden_states[1:-1], last]


def plain(states: torch.Tensor, batch, image_token_id: int, *, shift: int, pooling: str) -> torch.Tensor:
    """Token by token, without regions."""
    expected = torch.zeros(batch.response_mask.shape)
    for row in range(batch.size):
        images = states[row][batch.input_ids[row] == image_token_id]
        for token in range(int(batch.response_mask[row].sum())):
            if len(images):
                own = states[row, batch.prompt_length + token - shift]
                cosines = torch.nn.functional.cosine_similarity(own[None], images)
                expected[row, token] = cosines.mean() if pooling == "mean" else cosines.max()
    return expected


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize(("row", "shift"), [("own", 0), ("predicting", 1)])
def test_the_reader_agrees_with_the_models_hidden_states(policy, batch, row, shift, pooling):
    states = layer_outputs(policy, batch)
    assert len(states) == len(policy.get_decoder().layers)
    requests = [HiddenRequest(layers=(layer,), row=row, pooling=pooling) for layer in range(len(states))]
    both = HiddenRequest(layers=tuple(range(len(states))), row=row, pooling=pooling)
    found = read(policy, batch, *requests, both)
    expected = [plain(part, batch, policy.config.image_token_id, shift=shift, pooling=pooling) for part in states]
    for request, values in zip(requests, expected, strict=True):
        torch.testing.assert_close(found[request], values, atol=1e-5, rtol=0)
        assert values.std() > 1e-3, "a test of constants would prove nothing"
    torch.testing.assert_close(found[both], sum(expected) / len(expected), atol=1e-5, rtol=0)


def test_all_layers_are_read_and_the_hooks_are_gone_afterwards(policy, batch):
    layers = policy.get_decoder().layers
    everything, each = HiddenRequest(), HiddenRequest(layers=tuple(range(len(layers))))
    found = read(policy, batch, everything, each)
    assert torch.equal(found[everything], found[each])
    assert not any(layer._forward_hooks for layer in layers)
    assert (found[everything][1] == 0).all() and (found[everything][~batch.response_mask] == 0).all()


def test_the_output_does_not_change(policy, batch):
    with torch.no_grad():
        before = response_logits(policy, batch)
        with AttentionProbe(policy, [HiddenRequest()]).capture(batch):
            during = response_logits(policy, batch)
    assert torch.equal(before, during)


def test_no_such_layer(policy, batch):
    count = len(policy.get_decoder().layers)
    message = rf"^credit\.layers must be between 0 and {count - 1} for this model, got {count}$"
    probe = AttentionProbe(policy, [HiddenRequest(layers=(count,))])
    with pytest.raises(ValueError, match=message), probe.capture(batch):
        pass


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_chunks_change_nothing(policy, batch, monkeypatch, pooling):
    request = HiddenRequest(pooling=pooling)
    whole = read(policy, batch, request)[request]
    monkeypatch.setattr(hidden, "CHUNK_ELEMENTS", 1)
    torch.testing.assert_close(read(policy, batch, request)[request], whole, atol=1e-6, rtol=0)


def test_micro_batches_read_what_the_batch_does(policy, batch):
    request = HiddenRequest(pooling="max")
    whole = read(policy, batch, request)[request]
    parts = [read(policy, batch.rows(rows), request)[request] for rows in micro_batches(batch.size, 2)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_packed_sequences_see_their_own_picture_alone(pooling):
    """A row of two sequences, image token 9: the second's tokens are compared with its one image token."""
    input_ids = torch.tensor([[9, 9, 1, 2, 9, 1, 3, 4, 0]])
    segments = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2, 0]])
    is_response = torch.tensor([[0, 0, 0, 1, 0, 0, 1, 1, 0]]).bool()
    states = torch.randn(1, 9, 6, generator=torch.Generator().manual_seed(0))
    regions = packed_regions(input_ids, segments, is_response, [9], row="own")
    found = picture_cosine(states, regions, pooling=pooling)
    cosine = torch.nn.functional.cosine_similarity
    first = cosine(states[0, 3][None], states[0, :2])
    assert found[0, 0].item() == pytest.approx((first.mean() if pooling == "mean" else first.max()).item(), abs=1e-6)
    torch.testing.assert_close(found[1], cosine(states[0, 6:8], states[0, 4][None]))

"""The probe against attention that the model itself returns: eager kernel, output_attentions=True."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from atrl.credit import blocks as blocks_module
from atrl.credit.attention import AttentionCapture, AttentionReader, AttentionRequest
from atrl.credit.blocks import Block, blocks
from atrl.credit.connectivity import remove_sinks
from atrl.credit.edges import Edges
from atrl.credit.probe import AttentionProbe
from atrl.credit.regions import padded_regions
from atrl.experience import micro_batches
from atrl.models.policy import response_logits
from tests.unit.attention import FULL, assert_agrees, assert_close, eager_attention, expected_mass, read

EDGES = AttentionRequest(sink_factor=0, neighbours=5)


def test_batch_covers_the_hard_cases(policy, batch):
    """Grouped-query heads, padding on both sides, no picture, and different numbers of image tokens."""
    text = policy.config.get_text_config()
    assert 1 < text.num_key_value_heads < text.num_attention_heads
    assert (batch.attention_mask[:, 0] == 0).any() and (batch.attention_mask[:, -1] == 0).any()
    counts = (batch.input_ids == policy.config.image_token_id).sum(dim=1).tolist()
    assert counts[1] == 0 and len(set(counts)) >= 3
    assert batch.attention_mask[1, 0] == 1, "its missing image columns must not fall on padding, where all mass is 0"
    assert [len(pixels.get("image_grid_thw", [])) for pixels in batch.pixels] == [1, 0, 2, 1]


@pytest.mark.parametrize(("row", "shift"), [("predicting", 1), ("own", 0)])
def test_agrees_with_the_models_own_attention(policy, batch, row, shift):
    capture = read(policy, batch, replace(FULL, row=row))
    assert_agrees(capture, eager_attention(policy, batch), policy, batch, shift=shift)


def test_agrees_on_the_eager_kernel(policy, batch):
    policy.set_attn_implementation("eager")
    assert_agrees(read(policy, batch), eager_attention(policy, batch), policy, batch)


def test_agrees_with_sliding_windows(policy, batch):
    """Two of the layers see only the last six positions, so that most response rows lose the picture there."""
    config = copy.deepcopy(policy.config)
    text = config.get_text_config()
    text.use_sliding_window, text.sliding_window = True, 6
    text.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    windowed = type(policy)._from_config(config, attn_implementation="sdpa").eval()
    windowed.load_state_dict(policy.state_dict())
    capture = read(windowed, batch)
    assert_agrees(capture, eager_attention(windowed, batch), windowed, batch)
    assert (capture.mass[2, 0, :, 8] == 0).all() and (capture.mass[2, 1, :, 8] > 0).any()


def test_reads_the_layers_and_heads_that_are_asked_for(policy, batch):
    whole = read(policy, batch)
    layers = read(policy, batch, replace(FULL, layers=(2, 0)))
    assert torch.equal(layers.mass, whole.mass[:, [0, 2]]) and torch.equal(layers.total, whole.total[:, [0, 2]])
    heads = read(policy, batch, replace(FULL, heads=((2, 3), (1, 0), (1, 2))))
    expected = torch.stack([whole.mass[:, 1, 0], whole.mass[:, 1, 2], whole.mass[:, 2, 3]], dim=1)
    torch.testing.assert_close(heads.mass.flatten(1, 2), expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(heads.image, expected.amax(dim=1), atol=1e-7, rtol=0)
    with pytest.raises(AssertionError, match="layers and heads that are asked for"):
        read(policy, batch, replace(FULL, layers=(9,)))


@pytest.mark.parametrize(("row", "shift"), [("predicting", 1), ("own", 0)])
def test_mass_by_picture_is_the_sum_over_its_tokens(policy, batch, row, shift):
    """Of one picture, none, two and one."""
    found = read(policy, batch, replace(FULL, row=row, by_picture=True))
    masses = expected_mass(eager_attention(policy, batch), policy, batch, shift=shift)
    assert found.pictures.shape == (*found.total.shape, 2)
    for number, (mass, pixels) in enumerate(zip(masses, batch.pixels, strict=True)):
        grids = pixels.get("image_grid_thw", torch.zeros(0, 3, dtype=torch.long))
        sizes = (grids.prod(dim=1) // policy.config.vision_config.spatial_merge_size**2).tolist()
        expected = torch.stack([own.sum(dim=-1) for own in mass.split(sizes, dim=-1)], dim=-1) if sizes else 0.0
        own = found.pictures[number, :, :, : mass.shape[2], : len(sizes)]
        assert_close(own, torch.zeros_like(own) + expected)
        assert (found.pictures[number, ..., len(sizes) :] == 0).all()
        assert (found.pictures[number, :, :, mass.shape[2] :] == 0).all()


def test_mass_by_picture_of_some_heads_without_sinks_in_micro_batches_and_in_chunks(policy, batch, monkeypatch):
    request = AttentionRequest(heads=((2, 3), (1, 0), (1, 2)), sink_factor=1.5, by_picture=True)
    whole = read(policy, batch, request)
    assert_close(whole.pictures.sum(dim=-1), whole.total)
    assert (whole.total[2] - read(policy, batch, replace(request, sink_factor=0)).total[2]).abs().max() > 1e-3
    parts = [read(policy, batch.rows(slice(start, start + 1)), request) for start in range(batch.size)]
    assert_close(merge_captures(parts).pictures, whole.pictures)
    monkeypatch.setattr(blocks_module, "CHUNK_ELEMENTS", 256)
    assert_close(read(policy, batch, request).pictures, whole.pictures)
    assert read(policy, batch, replace(request, by_picture=False)).pictures is None


@pytest.mark.parametrize(("row", "shift"), [("predicting", 1), ("own", 0)])
@pytest.mark.parametrize("heads", [None, ((2, 3), (1, 0), (1, 2))], ids=["all heads", "three heads"])
def test_edges_are_the_strongest_of_each_layer(policy, batch, row, shift, heads):
    """Of the sum over its heads of the response's rows on its own columns, over all heads that are read; a token's own
    is no edge."""
    edges = read(policy, batch, replace(EDGES, row=row, heads=heads)).edges
    wanted = heads or [(layer, head) for layer in range(3) for head in range(4)]
    for number, attention in enumerate(eager_attention(policy, batch)):
        tokens = batch.prompt_length + batch.response_mask[number].nonzero()[:, 0]
        for place, layer in enumerate(sorted({layer for layer, _ in wanted})):
            own = [head for other, head in wanted if other == layer]
            mass = attention[layer][own][:, tokens - shift][..., tokens].sum(dim=0) / len(wanted)
            mass.fill_diagonal_(0)
            kept = min(5, len(tokens))
            strengths, targets = edges.strengths[number, place], edges.targets[number, place].long()
            assert_close(strengths[: len(tokens), :kept], mass.sort(dim=1, descending=True).values[:, :kept])
            # An edge of strength 0 may point anywhere.
            named = mass.gather(1, targets[: len(tokens)].clamp_max(len(tokens) - 1))
            assert_close(named * (strengths[: len(tokens)] > 0), strengths[: len(tokens)])
            assert (strengths[len(tokens) :] == 0).all()
    assert edges.strengths.shape[1] == place + 1


def test_a_layer_that_runs_twice_counts_once(batch):
    """As when it is computed again for its gradient: nothing of its second time is added, and no order matters."""
    generator = torch.Generator().manual_seed(0)
    columns = batch.input_ids.shape[1]
    layers = [[torch.randn(batch.size, heads, columns, 4, generator=generator) for heads in (4, 2)] for _ in range(2)]
    results = []
    for order in ((0, 1), (0, 0, 1, 0), (1, 0)):
        reader = AttentionReader(EDGES, padded_regions(batch, (1,)))
        for number in order:
            reader.read_attention(number, *layers[number], scaling=0.5)
        results.append(reader.result())
    first, *others = results
    assert first.edges.strengths.any()
    for other in others:
        assert torch.equal(first.total, other.total) and torch.equal(first.image, other.image)
        assert torch.equal(first.edges.strengths, other.edges.strengths)


def test_sinks_are_left_out(policy, batch):
    """What is read with a sink factor is `remove_sinks` of what is read without."""
    plain, cleaned = read(policy, batch), read(policy, batch, replace(FULL, sink_factor=1.5))
    for layer in range(plain.mass.shape[1]):
        expected = remove_sinks(plain.mass[:, layer], plain.image_mask, batch.response_mask, factor=1.5)
        torch.testing.assert_close(cleaned.mass[:, layer], expected, atol=1e-6, rtol=0)
    assert (cleaned.total - plain.total).abs().max() > 0.01
    torch.testing.assert_close(cleaned.total, cleaned.mass.sum(dim=-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_the_models_output_does_not_change(policy, batch, kernel):
    """Bit for bit, so the kernel that runs is the model's own: the two kernels round differently."""
    policy.set_attn_implementation(kernel)
    with torch.no_grad():
        plain = response_logits(policy, batch)
        probe = AttentionProbe(policy, [EDGES])
        idle = response_logits(policy, batch)
        with probe.capture(batch):
            captured = response_logits(policy, batch)
    assert torch.equal(plain, idle) and torch.equal(plain, captured)


def test_the_training_pass_is_not_changed_either(policy, batch):
    """Gradients are bit-identical with the probe reading, and what it reads is that of a no-grad pass."""
    expected = read(policy, batch)
    response_logits(policy, batch).square().sum().backward()
    plain = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
    policy.zero_grad()
    probe = AttentionProbe(policy, [FULL])
    with probe.capture(batch) as recorder:
        logits = response_logits(policy, batch)
    logits.square().sum().backward()
    assert all(torch.equal(parameter.grad, plain[name]) for name, parameter in policy.named_parameters())
    capture = recorder.results()[FULL]
    assert not capture.mass.requires_grad
    torch.testing.assert_close(capture.mass, expected.mass, atol=1e-6, rtol=0)


def test_the_training_pass_takes_what_its_kernel_keeps(policy, batch, monkeypatch):
    """No row of scores over all columns is made; where layers run again for their gradients, they all are."""
    attention, seen = eager_attention(policy, batch), []
    original = Block._softmax_rows
    monkeypatch.setattr(Block, "_softmax_rows", lambda *args: seen.append(1) or original(*args))
    request = replace(FULL, neighbours=5)
    probe = AttentionProbe(policy, [request])
    with probe.capture(batch) as recorder:
        response_logits(policy, batch)
    found = recorder.results()[request]
    assert not seen
    assert_agrees(found, attention, policy, batch)
    assert_close(found.edges.strengths, read(policy, batch, request).edges.strengths)
    policy.train()
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    seen.clear()
    with probe.capture(batch) as recorder:
        response_logits(policy, batch)
    layers = recorder.results()[request].mass.shape[1]
    assert len(seen) == 2 * layers, "once for the picture and once for the edges"


def test_a_window_hides_the_picture_in_training_too(policy, batch):
    config = copy.deepcopy(policy.config)
    text = config.get_text_config()
    text.use_sliding_window, text.sliding_window, text.layer_types = True, 6, ["sliding_attention"] * 3
    windowed = type(policy)._from_config(config, attn_implementation="sdpa").eval()
    windowed.load_state_dict(policy.state_dict())
    probe = AttentionProbe(windowed, [FULL])
    with probe.capture(batch) as recorder:
        response_logits(windowed, batch)
    assert_agrees(recorder.results()[FULL], eager_attention(windowed, batch), windowed, batch)


def test_gradient_checkpointing_reads_the_same(policy, batch):
    """The backward pass runs every layer a second time, inside or outside the capture."""
    expected = read(policy, batch)
    policy.train()
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    probe = AttentionProbe(policy, [FULL])
    with probe.capture(batch) as recorder:
        response_logits(policy, batch).sum().backward()
    with probe.capture(batch) as closed:
        logits = response_logits(policy, batch)
    logits.sum().backward()
    for capture in (recorder.results()[FULL], closed.results()[FULL]):
        torch.testing.assert_close(capture.mass, expected.mass, atol=1e-6, rtol=0)
    assert policy.model.visual.patch_embed.proj.weight.grad.abs().sum() > 0


def test_mixed_precision_is_read_in_float32(policy, batch, monkeypatch):
    """Under autocast the softmax is still that of float32 products of the queries and keys as they come."""
    seen = []
    original = Block._softmax_rows
    monkeypatch.setattr(Block, "_softmax_rows", lambda *args: seen.append((args, original(*args))) or seen[-1][1])
    with torch.autocast("cpu", torch.bfloat16):
        capture = read(policy, batch)
    assert capture.mass.dtype == torch.float32 and len(seen) == capture.mass.shape[1]
    for (block, _, part), mass in seen:
        row, head = 3, 2
        rows = block.regions.rows[:, part]
        assert block.dtype == torch.bfloat16
        states = block.query[row, head, rows[row]], block.key[row, head // 2]
        query, key = (part.bfloat16().double() for part in states)
        scores = query @ key.T * block.scaling
        hidden = torch.arange(key.shape[0])[None] > rows[row][:, None]
        hidden |= batch.attention_mask[row] == 0
        expected = scores.masked_fill(hidden, -torch.inf).softmax(-1).float()
        torch.testing.assert_close(mass[row, head], expected, atol=1e-6, rtol=0)


def test_a_training_pass_in_mixed_precision_is_read_in_float32(policy, batch, monkeypatch):
    """By the log-sum-exp that the kernel kept, of bfloat16 queries and keys: as float64 has it of the same."""
    seen = []
    original = Block._exponentials_at
    monkeypatch.setattr(Block, "_exponentials_at", lambda *args: seen.append(args[0]) or original(*args))
    probe = AttentionProbe(policy, [FULL])
    with torch.autocast("cpu", torch.bfloat16):  # as long as a training step is going on
        with probe.capture(batch) as recorder:
            response_logits(policy, batch)
        mass = recorder.results()[FULL].mass
    assert mass.dtype == torch.float32 and len(seen) == mass.shape[1]
    for layer, block in enumerate(seen):
        assert block.dtype == torch.bfloat16 and block.lse.dtype == torch.float32
        row, head = 3, 2
        rows = block.regions.rows[row][batch.response_mask[row]]
        query, key = (part.bfloat16().double() for part in (block.query[row, head, rows], block.key[row, head // 2]))
        scores = query @ key.T * block.scaling
        hidden = torch.arange(key.shape[0])[None] > rows[:, None]
        hidden |= batch.attention_mask[row] == 0
        image = (batch.input_ids[row] == policy.config.image_token_id).nonzero()[:, 0]
        expected = scores.masked_fill(hidden, -torch.inf).softmax(-1)[:, image].float()
        torch.testing.assert_close(mass[row, layer, head, : len(rows), : len(image)], expected, atol=1e-5, rtol=0)


def test_only_the_language_half_is_tapped_and_detach_restores_it(policy, batch):
    """Until it is attached again."""
    text, vision = policy.config.text_config, policy.config.vision_config
    probe = AttentionProbe(policy, [FULL])
    assert text._attn_implementation != "sdpa" and vision._attn_implementation == "sdpa"
    probe.detach()
    assert text._attn_implementation == vision._attn_implementation == "sdpa"
    with torch.no_grad(), probe.capture(batch) as recorder:
        response_logits(policy, batch)
    with pytest.raises(AssertionError, match="saw no layer"):
        recorder.results()
    probe.attach()
    with torch.no_grad(), probe.capture(batch) as recorder:
        response_logits(policy, batch)
    assert torch.equal(recorder.results()[FULL].mass, read(policy, batch, FULL).mass)


@pytest.mark.parametrize("elements", [1, 300, 2000, 9000])
def test_chunks_change_nothing_and_bound_what_is_held(policy, batch, monkeypatch, elements):
    """From one row of one head at a time to all heads of two responses; up to rounding."""
    request = replace(FULL, neighbours=5, sink_factor=1.5)
    whole = read(policy, batch, request)
    sizes = []
    original = Block._softmax_rows
    monkeypatch.setattr(Block, "_softmax_rows", lambda *args: sizes.append(original(*args)) or sizes[-1])
    monkeypatch.setattr(blocks_module, "CHUNK_ELEMENTS", elements)
    chunked = read(policy, batch, request)
    assert max(mass.numel() for mass in sizes) <= max(elements, batch.input_ids.shape[1])
    for name in ("mass", "total", "peak", "image"):
        torch.testing.assert_close(getattr(chunked, name), getattr(whole, name), atol=1e-6, rtol=0)
    torch.testing.assert_close(chunked.edges.strengths, whole.edges.strengths, atol=1e-6, rtol=0)


def test_blocks_cover_every_head_of_every_response_once(policy, batch, monkeypatch):
    regions = padded_regions(batch, (policy.config.image_token_id,))
    columns = batch.input_ids.shape[1]
    for elements in (1, 5000, 20000, 10**7):
        monkeypatch.setattr(blocks_module, "CHUNK_ELEMENTS", elements)
        seen = [
            (response, head)
            for part, first, last in blocks(regions, 4, columns)
            for response in range(part.start, part.stop)
            for head in range(first, last)
        ]
        assert sorted(seen) == [(response, head) for response in range(batch.size) for head in range(4)]


def test_nothing_is_recorded_outside_a_capture(policy, batch):
    probe = AttentionProbe(policy, [FULL])
    with torch.no_grad():
        with probe.capture(batch) as recorder:
            response_logits(policy, batch)
        before = recorder.results()[FULL]
        response_logits(policy, batch.rows(slice(0, 1)))
    assert torch.equal(before.mass, recorder.results()[FULL].mass)


def test_an_inner_capture_records_alone_and_hands_back(policy, batch):
    first, second = batch.rows(slice(0, 2)), batch.rows(slice(2, 4))
    expected = [read(policy, part) for part in (first, second)]
    probe = AttentionProbe(policy, [FULL])
    with torch.no_grad(), probe.capture(first) as outer:
        with probe.capture(second) as inner:
            response_logits(policy, second)
        response_logits(policy, first)
    for recorder, capture in zip((outer, inner), expected, strict=True):
        assert torch.equal(recorder.results()[FULL].mass, capture.mass)


def test_an_error_inside_a_capture_ends_it(policy, batch):
    probe = AttentionProbe(policy, [FULL])
    with pytest.raises(KeyError), probe.capture(batch) as recorder:
        raise KeyError
    with torch.no_grad():
        response_logits(policy, batch)
    with pytest.raises(AssertionError, match="saw no layer"):
        recorder.results()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (0, 99)}, r"name layers that have attention, got 99: .* only \[0\] were seen"),
        ({"heads": ((0, 1), (99, 0))}, r"name layers that have attention, got 99: .* only \[0\] were seen"),
        ({"heads": ((0, 99),)}, r"^credit\.heads: layer 0 has heads 0 to \d+, got 99"),
        ({"heads": ((0, -1),)}, r"^credit\.heads: layer 0 has heads 0 to \d+, got -1"),
    ],
)
def test_layers_and_heads_that_the_model_lacks_are_refused(policy, batch, options, message):
    with pytest.raises(ValueError, match=message):
        read(policy, batch, AttentionRequest(neighbours=0, **options))


def test_a_head_named_twice_is_read_once(policy, batch):
    assert read(policy, batch, AttentionRequest(heads=((0, 1), (0, 1)))).peak.shape[1:3] == (1, 1)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_merge_to_the_whole(policy, batch, size):
    """The first micro-batch has fewer image columns than the whole; with size 1 the second has none."""
    request = replace(FULL, neighbours=5)
    whole = read(policy, batch, request)
    merged = merge_captures([read(policy, batch.rows(rows), request) for rows in micro_batches(batch.size, size)])
    assert torch.equal(merged.image_mask, whole.image_mask)
    for name in ("mass", "total", "peak", "image"):
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), atol=1e-6, rtol=0)
    torch.testing.assert_close(merged.edges.strengths, whole.edges.strengths, atol=1e-6, rtol=0)


def test_several_requests_are_read_in_one_pass(policy, batch):
    own = replace(FULL, row="own")
    probe = AttentionProbe(policy, [FULL, own, FULL])
    with torch.no_grad(), probe.capture(batch) as recorder:
        response_logits(policy, batch)
    results = recorder.results()
    probe.detach()
    assert set(results) == {FULL, own} and recorder.seconds > 0
    for request in (FULL, own):
        assert torch.equal(results[request].mass, read(policy, batch, request).mass)
    assert len(expected_mass(eager_attention(policy, batch), policy, batch)) == batch.size


def test_a_model_without_the_interface_is_noticed(batch):
    config = SimpleNamespace(image_token_id=7, model_type="none", _attn_implementation="sdpa", sub_configs={})
    config.get_text_config = lambda: config
    model = SimpleNamespace(config=config, set_attn_implementation=lambda names: None, training=False)
    with AttentionProbe(model, [FULL]).capture(batch) as recorder:
        pass
    with pytest.raises(AssertionError, match="does this model use transformers' attention interface"):
        recorder.results()


def merge_captures(parts: Sequence[AttentionCapture]) -> AttentionCapture:
    """The captures of consecutive micro-batches as one; image columns and pictures padded to the widest."""

    def widened(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        width, pad = max(tensor.shape[-1] for tensor in tensors), torch.nn.functional.pad
        return torch.cat([pad(tensor, (0, width - tensor.shape[-1])) for tensor in tensors])

    edges = None
    if parts[0].edges is not None:
        edges = Edges(
            torch.cat([part.edges.targets for part in parts]), torch.cat([part.edges.strengths for part in parts])
        )
    return AttentionCapture(
        total=torch.cat([part.total for part in parts]),
        peak=torch.cat([part.peak for part in parts]),
        image=widened([part.image for part in parts]),
        image_mask=widened([part.image_mask for part in parts]),
        edges=edges,
        pictures=None if parts[0].pictures is None else widened([part.pictures for part in parts]),
        mass=None if parts[0].mass is None else widened([part.mass for part in parts]),
    )

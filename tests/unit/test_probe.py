"""The probe against attention that the model itself returns: eager kernel, output_attentions=True."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from atrl.credit import probe as probe_module
from atrl.credit.probe import AttentionProbe, Recorder, concatenate, image_columns
from atrl.experience import micro_batches
from atrl.models.policy import picture_inputs, response_logits
from atrl.types import AttentionCapture, Experience

TOLERANCE = 1e-5


def read(policy, batch: Experience, **options) -> AttentionCapture:
    probe = AttentionProbe(policy, **options)
    with torch.no_grad(), probe.capture(batch) as recorder:
        response_logits(policy, batch)
    probe.detach()
    return recorder.result()


def eager_attention(policy, batch: Experience) -> torch.Tensor:
    """[rollout, layer, head, token, token] as transformers returns it from an eager copy of `policy`."""
    eager = copy.deepcopy(policy)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        output = eager(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_attentions=True,
            **picture_inputs(eager, batch.input_ids, batch.pixels),
        )
    return torch.stack(output.attentions, dim=1)


def assert_agrees(capture: AttentionCapture, attention: torch.Tensor, policy, batch: Experience, *, shift: int) -> None:
    """Token by token: mass on each image position and mean mass on the response, in the row `shift` before it."""
    assert capture.image.shape[:4] == (*attention.shape[:3], batch.response_length)
    for row in range(batch.size):
        image = (batch.input_ids[row] == policy.config.image_token_id).nonzero()[:, 0]
        assert capture.image_mask[row].sum() == len(image)
        assert (capture.image[row, ..., len(image) :] == 0).all()
        length = int(batch.response_mask[row].sum())
        assert (capture.image[row, :, :, length:] == 0).all() and (capture.response[row, length:] == 0).all()
        assert (capture.response[row, :, length:] == 0).all()
        for token in range(length):
            expected = attention[row, :, :, batch.prompt_length + token - shift]
            close = {"atol": TOLERANCE, "rtol": 0}
            torch.testing.assert_close(capture.image[row, :, :, token, : len(image)], expected[..., image], **close)
            response = expected[..., batch.prompt_length : batch.prompt_length + length].mean(dim=(0, 1))
            torch.testing.assert_close(capture.response[row, token, :length], response, **close)


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
    assert_agrees(read(policy, batch, row=row), eager_attention(policy, batch), policy, batch, shift=shift)


def test_predicting_is_the_default(policy, batch):
    assert torch.equal(read(policy, batch).image, read(policy, batch, row="predicting").image)


def test_agrees_on_the_eager_kernel(policy, batch):
    policy.set_attn_implementation("eager")
    assert_agrees(read(policy, batch), eager_attention(policy, batch), policy, batch, shift=1)


def test_agrees_with_sliding_windows(policy, batch):
    """Two of the layers see only the last six positions, so that most response rows lose the picture there."""
    config = copy.deepcopy(policy.config)
    text = config.get_text_config()
    text.use_sliding_window, text.sliding_window = True, 6
    text.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    windowed = type(policy)._from_config(config, attn_implementation="sdpa").eval()
    windowed.load_state_dict(policy.state_dict())
    capture = read(windowed, batch)
    assert_agrees(capture, eager_attention(windowed, batch), windowed, batch, shift=1)
    assert (capture.image[2, 0, :, 8] == 0).all() and (capture.image[2, 1, :, 8] > 0).any()


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_the_models_output_does_not_change(policy, batch, kernel):
    """Bit for bit, so the kernel that runs is the model's own: the two kernels round differently."""
    policy.set_attn_implementation(kernel)
    with torch.no_grad():
        plain = response_logits(policy, batch)
        probe = AttentionProbe(policy)
        idle = response_logits(policy, batch)
        with probe.capture(batch):
            captured = response_logits(policy, batch)
    assert torch.equal(plain, idle) and torch.equal(plain, captured)


def test_only_the_language_half_is_tapped_and_detach_restores_it(policy, batch):
    text, vision = policy.config.text_config, policy.config.vision_config
    probe = AttentionProbe(policy)
    assert text._attn_implementation != "sdpa" and vision._attn_implementation == "sdpa"
    probe.detach()
    assert text._attn_implementation == vision._attn_implementation == "sdpa"
    with torch.no_grad(), probe.capture(batch) as recorder:
        response_logits(policy, batch)
    with pytest.raises(AssertionError, match="saw no layer"):
        recorder.result()


@pytest.mark.parametrize(("rows", "chunks"), [(1, 9), (4, 3)])
def test_chunks_change_nothing(policy, batch, monkeypatch, rows, chunks):
    """Up to rounding: a matrix product of fewer rows may add in another order."""
    whole = read(policy, batch)
    sizes = []
    original = Recorder._softmax_rows
    monkeypatch.setattr(
        Recorder, "_softmax_rows", lambda *args: sizes.append(args[3].stop - args[3].start) or original(*args)
    )
    heads = policy.config.get_text_config().num_attention_heads
    monkeypatch.setattr(probe_module, "_CHUNK_ELEMENTS", batch.size * heads * batch.input_ids.shape[1] * rows)
    chunked = read(policy, batch)
    assert len(sizes) == whole.image.shape[1] * chunks and max(sizes) == rows
    torch.testing.assert_close(chunked.image, whole.image, atol=1e-6, rtol=0)
    torch.testing.assert_close(chunked.response, whole.response, atol=1e-6, rtol=0)


def test_nothing_is_recorded_outside_a_capture(policy, batch):
    probe = AttentionProbe(policy)
    with torch.no_grad():
        with probe.capture(batch) as recorder:
            response_logits(policy, batch)
        before = recorder.result()
        response_logits(policy, batch.rows(slice(0, 1)))
    assert torch.equal(before.image, recorder.result().image)


def test_an_inner_capture_records_alone_and_hands_back(policy, batch):
    first, second = batch.rows(slice(0, 2)), batch.rows(slice(2, 4))
    expected = [read(policy, part) for part in (first, second)]
    probe = AttentionProbe(policy)
    with torch.no_grad(), probe.capture(first) as outer:
        with probe.capture(second) as inner:
            response_logits(policy, second)
        response_logits(policy, first)
    for recorder, capture in zip((outer, inner), expected, strict=True):
        assert torch.equal(recorder.result().image, capture.image)


def test_an_error_inside_a_capture_ends_it(policy, batch):
    probe = AttentionProbe(policy)
    with pytest.raises(KeyError), probe.capture(batch) as recorder:
        raise KeyError
    with torch.no_grad():
        response_logits(policy, batch)
    with pytest.raises(AssertionError, match="saw no layer"):
        recorder.result()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_concatenate_to_the_whole(policy, batch, size):
    """The first micro-batch has fewer image columns than the whole; with size 1 the second has none."""
    whole = read(policy, batch)
    parts = concatenate([read(policy, batch.rows(rows)) for rows in micro_batches(batch.size, size)])
    assert torch.equal(parts.image_mask, whole.image_mask)
    torch.testing.assert_close(parts.image, whole.image, atol=1e-6, rtol=0)
    torch.testing.assert_close(parts.response, whole.response, atol=1e-6, rtol=0)


def test_no_gradient_flows_and_recomputation_reads_the_same(policy, batch):
    """Under gradient checkpointing the backward pass runs every layer a second time."""
    expected = read(policy, batch)
    policy.train()
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    probe = AttentionProbe(policy)
    with probe.capture(batch) as recorder:
        response_logits(policy, batch).sum().backward()
    capture = recorder.result()
    assert not capture.image.requires_grad and not capture.response.requires_grad
    torch.testing.assert_close(capture.image, expected.image, atol=1e-6, rtol=0)
    assert policy.model.visual.patch_embed.proj.weight.grad.abs().sum() > 0


def test_image_columns_by_hand():
    columns, mask = image_columns(torch.tensor([[7, 1, 7, 7, 2], [3, 7, 4, 5, 6], [1, 2, 3, 4, 5]]), image_token_id=7)
    assert mask.tolist() == [[True, True, True], [True, False, False], [False, False, False]]
    assert columns[0].tolist() == [0, 2, 3] and columns[1, 0] == 1


def test_a_model_without_the_interface_is_noticed(batch):
    config = SimpleNamespace(image_token_id=7, _attn_implementation="sdpa", sub_configs={})
    config.get_text_config = lambda: config
    model = SimpleNamespace(config=config, set_attn_implementation=lambda names: None)
    with AttentionProbe(model).capture(batch) as recorder:
        pass
    with pytest.raises(AssertionError, match="does this model use transformers' attention interface"):
        recorder.result()

"""The policy on batches that mix videos, pictures and text alone: as each row by itself, and both samplers' way."""

from __future__ import annotations

import pytest
import torch
from attention import assert_agrees, eager_attention, read
from conftest import rollout_batch
from torch import Tensor
from video_prompts import problems, qwen3_vl
from vision import count_encodings, vision_gradient

from atrl.credit.regions import padded_regions, visual_token_ids
from atrl.data.prompts import PromptBuilder
from atrl.data.templates import banned_token_ids
from atrl.experience import build_experience
from atrl.forward import ForwardPass
from atrl.models.policy import response_logits
from atrl.models.positions import position_ids, token_types
from atrl.rollout.base import ModelHandle, Sampling
from atrl.rollout.transformers import TransformersSampler
from atrl.types import Experience, Rollout, RolloutGroup

LENGTHS = {"video": 5, "none": 7, "image": 3, "mixed": 9}


@pytest.fixture(scope="module")
def three():
    """A tiny Qwen3-VL."""
    return qwen3_vl()


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def family(request):
    """Processor and model of either family."""
    if request.param == "qwen3_vl":
        return request.getfixturevalue("three")
    return request.getfixturevalue("processor"), request.getfixturevalue("policy")


def prompts_for(processor) -> dict:
    builder = PromptBuilder(processor=processor)
    return {name: builder.build(problem) for name, problem in problems().items()}


def mixed_batch(processor) -> Experience:
    prompts = prompts_for(processor)
    return rollout_batch([(prompts[name], length) for name, length in LENGTHS.items()])


def alone(model, batch: Experience, row: int, *, positions: bool) -> Tensor:
    """Response logits of one row, unpadded, with the model's own encoding; with `positions` in ours."""
    kept = batch.attention_mask[row].bool()
    ids = batch.input_ids[row][kept][None]
    mask, pixels = torch.ones_like(ids), dict(batch.pixels[row])
    if positions:
        where = {"position_ids": position_ids(model, ids, mask, pixels)}
    else:
        where = {"mm_token_type_ids": token_types(model, ids)} if pixels else {}
        model.base_model.rope_deltas = None
    logits = model(input_ids=ids, attention_mask=mask, **pixels, **where).logits[0]
    length = int(batch.response_mask[row].sum())
    return logits[-length - 1 : -1]


def test_every_row_is_as_it_would_be_alone(family):
    """Padding, other rows' videos and shared encoding change nothing."""
    processor, model = family
    batch = mixed_batch(processor)
    with torch.no_grad():
        logits = response_logits(model, batch)
        for row in range(batch.size):
            length = int(batch.response_mask[row].sum())
            expected = alone(model, batch, row, positions=True)
            torch.testing.assert_close(logits[row, :length], expected, atol=2e-5, rtol=0)


def test_qwen3_vl_needs_no_correction_of_its_positions(three):
    """Each frame is a span of its own there, and time stands in the text: transformers' own forward is the same."""
    processor, model = three
    batch = mixed_batch(processor)
    with torch.no_grad():
        for row in range(batch.size):
            torch.testing.assert_close(
                alone(model, batch, row, positions=True), alone(model, batch, row, positions=False), atol=2e-5, rtol=0
            )


def test_frames_and_their_times_matter(policy, processor):
    """Otherwise the tests above would pass on a model that never saw them."""
    batch = mixed_batch(processor)
    with torch.no_grad():
        whole = response_logits(policy, batch)
        for name, changed in (
            ("pixel_values_videos", lambda tensor: tensor.flip(0)),
            ("second_per_grid_ts", lambda tensor: 2 * tensor),
        ):
            pixels = [{**entry, name: changed(entry[name])} if name in entry else entry for entry in batch.pixels]
            other = response_logits(
                policy,
                Experience(batch.input_ids, batch.attention_mask, batch.response_mask, pixels, batch.sampler_logprobs),
            )
            difference = (whole - other).abs().amax(dim=(1, 2))
            assert (difference[[0, 3]] > 1e-2).all() and (difference[[1, 2]] == 0).all(), name


def test_a_shared_video_is_encoded_once_and_gets_every_rows_gradient(policy, processor, monkeypatch):
    prompt = prompts_for(processor)["mixed"]
    rollouts = [Rollout([20, 21, 22], [0.0] * 3, True), Rollout([30, 31], [0.0] * 2, True)]
    shared = build_experience([RolloutGroup(prompt, rollouts, ["", ""], 0)], pad_id=0)
    encoded = count_encodings(policy, monkeypatch)
    together = vision_gradient(policy, response_logits(policy, shared)[shared.response_mask].square().sum())
    assert encoded == [sum(len(prompt.pixels[name]) for name in ("pixel_values", "pixel_values_videos"))]
    monkeypatch.undo()
    rows = torch.cat([alone(policy, shared, row, positions=True) for row in range(2)])
    apart = vision_gradient(policy, rows.square().sum())
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-3 * float(apart.abs().max()))


def test_the_transformers_samplers_logprobs_are_the_trainers(family, checkpoint):
    """Also where the last frame's position is far beyond the number of tokens, as decoding has to know."""
    processor, model = family
    prompts = list(prompts_for(processor).values())
    handle = ModelHandle(
        folder=checkpoint, model=model, tokenizer=processor.tokenizer, banned_ids=banned_token_ids(processor),
        max_prompt_tokens=512, max_response_tokens=12, max_images=1, max_videos=2,
    )  # fmt: skip
    sampler = TransformersSampler()
    sampler.start(handle)
    groups = sampler.generate(prompts, Sampling(group_size=2, max_response_tokens=12), seed="0")
    batch = build_experience(groups, pad_id=0)
    with torch.no_grad():
        logprobs, _ = ForwardPass(temperature=1.0, banned_ids=handle.banned_ids).logprobs(model, batch)
    assert batch.response_mask.sum() > 50
    torch.testing.assert_close(logprobs, batch.sampler_logprobs, atol=1e-5, rtol=0)


def test_the_probe_reads_attention_on_video_tokens(policy, processor):
    """As transformers returns it: one column for each image and video token, in the order of the prompt."""
    batch = mixed_batch(processor)
    image, video = policy.config.image_token_id, policy.config.video_token_id
    visual = torch.isin(batch.input_ids, torch.tensor([image, video]))
    regions = padded_regions(batch, visual_token_ids(policy.config))
    # 112 pixels are 4×4 tokens, 8 frames 4 patches; a mixed prompt has 3 and 3 patches and a picture of 2×5 or 5×2.
    assert regions.column_mask.sum(dim=1).tolist() == visual.sum(dim=1).tolist()
    assert (visual & (batch.input_ids == video)).sum(dim=1).tolist()[:3] == [64, 0, 0]
    assert (batch.input_ids == video).sum(dim=1)[3] > 0 < (batch.input_ids == image).sum(dim=1)[3]
    # `assert_agrees` looks for image tokens: here each visual token is one to it.
    renamed = Experience(
        batch.input_ids.masked_fill(visual, image), batch.attention_mask, batch.response_mask, batch.pixels,
        batch.sampler_logprobs,
    )  # fmt: skip
    assert_agrees(read(policy, batch), eager_attention(policy, batch), policy, renamed)

"""Rollouts as tensors, and the forward pass over them."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from vision import count_encodings, vision_gradient

from atrl.credit.bound import join_credit
from atrl.experience import build_experience, collate, micro_batches
from atrl.models.policy import response_logits
from atrl.types import CreditOutput, Experience, Problem, Prompt, Rollout, RolloutGroup


def group(prompt_ids: list[int], *responses: list[int]) -> RolloutGroup:
    pixels = {"pixel_values": torch.tensor([float(prompt_ids[0])])}
    prompt = Prompt(Problem(id="p", question="?", answer="!"), prompt_ids, pixels, (), prompt_ids)
    rollouts = [Rollout(response, [-float(token) for token in response], True) for response in responses]
    return RolloutGroup(prompt, rollouts, [""] * len(rollouts), policy_version=0)


GROUPS = [group([1, 2, 3], [5], [6, 7]), group([4], [8, 9, 10], [11])]


@pytest.fixture(scope="module")
def built() -> Experience:
    return build_experience(GROUPS, pad_id=99)


def test_prompts_are_padded_on_the_left_and_responses_on_the_right(built):
    assert built.input_ids.tolist() == [
        [1, 2, 3, 5, 99, 99],
        [1, 2, 3, 6, 7, 99],
        [99, 99, 4, 8, 9, 10],
        [99, 99, 4, 11, 99, 99],
    ]
    assert built.attention_mask.tolist() == [
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 0, 0],
    ]


def test_every_response_starts_at_the_same_column(built):
    assert (built.size, built.prompt_length, built.response_length) == (4, 3, 3)
    assert built.response_mask.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert built.sampler_logprobs.tolist() == [[-5, 0, 0], [-6, -7, 0], [-8, -9, -10], [-11, 0, 0]]
    assert built.old_logprobs is None and built.reference_logprobs is None


def test_a_group_shares_its_picture_tensors(built):
    assert built.pixels[0] is built.pixels[1] and built.pixels[2] is built.pixels[3]
    assert built.pixels[0] is not built.pixels[2]
    for row, source in zip((0, 2), GROUPS, strict=True):
        assert built.pixels[row]["pixel_values"] is source.prompt.pixels["pixel_values"]


def test_rows_keep_the_padding_and_the_shared_pictures(built):
    rows = built.rows(slice(1, 3))
    assert rows.input_ids.tolist() == [[1, 2, 3, 6, 7, 99], [99, 99, 4, 8, 9, 10]]
    assert (rows.prompt_length, rows.response_length) == (3, 3)
    assert rows.sampler_logprobs.tolist() == [[-6, -7, 0], [-8, -9, -10]]
    assert rows.pixels[0] is built.pixels[0] and rows.pixels[1] is built.pixels[2]
    assert rows.old_logprobs is None


def test_rollouts_are_named_by_step_visit_and_sample():
    """Two visits of one problem are told apart, and so are the samples of each."""
    again = replace(GROUPS[0], prompt=replace(GROUPS[0].prompt, epoch=1))
    keys = build_experience([GROUPS[0], again], pad_id=99, seed="7/2").keys
    assert keys == ["7/2/p/0/0", "7/2/p/0/1", "7/2/p/1/0", "7/2/p/1/1"]


@pytest.mark.parametrize("kind", [Experience, CreditOutput])
def test_rows_are_those_of_every_field(kind):
    """Each field holds its own name's number and the row's, so that a mixed-up or a forgotten one shows."""
    names = [field.name for field in fields(kind) if field.name != "pictures_somewhere"]  # of the whole batch
    lists = {"pixels", "masked_pixels", "keys"}
    whole = {
        name: [[10 * place + row] for row in range(4)] if name in lists else torch.arange(4.0)[:, None] + 10 * place
        for place, name in enumerate(names)
    }
    part = kind(**whole).rows(slice(1, 3))
    for name in names:
        assert list(getattr(part, name)) == list(whole[name][1:3]), name


@pytest.mark.parametrize("somewhere", [True, False])
def test_rows_know_of_pictures_in_the_rest_of_the_batch(somewhere):
    built = replace(build_experience(GROUPS, pad_id=99), pictures_somewhere=somewhere)
    assert built.rows(slice(0, 1)).pictures_somewhere is somewhere


def test_credit_of_micro_batches_is_joined_field_by_field():
    whole = CreditOutput(torch.rand(4, 3), torch.rand(4, 3) > 0.5, torch.rand(4, 3), torch.rand(4))
    joined = join_credit([whole.rows(slice(0, 1)), whole.rows(slice(1, 4))], 3)
    for field in fields(CreditOutput):
        assert torch.equal(getattr(joined, field.name), getattr(whole, field.name)), field.name
    bare = join_credit([CreditOutput(torch.ones(1, 2)), CreditOutput(torch.zeros(1, 2))], 2)
    assert bare.weights.tolist() == [[1, 1], [0, 0]] and bare.anchors is bare.density is bare.trajectory_scale is None
    assert join_credit([None, None], 2) is None


def test_collate_needs_a_prompt_for_each_response():
    with pytest.raises(ValueError, match="longer"):
        collate([GROUPS[0].prompt], [[5], [6]], pad_id=99)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(4, [(0, 4), (4, 8), (8, 10)]), (5, [(0, 5), (5, 10)]), (64, [(0, 10)]), (1, [(i, i + 1) for i in range(10)])],
)
def test_micro_batches_cover_every_rollout_once(size, expected):
    assert [(rows.start, rows.stop) for rows in micro_batches(10, size)] == expected


def stock_logits(policy, batch: Experience, row: int) -> Tensor:
    """Logits of every position of one rollout, unpadded and with the model's own picture handling."""
    kept = batch.attention_mask[row].bool()
    input_ids = batch.input_ids[row][kept][None]
    pictures = {}
    if batch.pixels[row]:
        pictures = {**batch.pixels[row], "mm_token_type_ids": (input_ids == policy.config.image_token_id).int()}
    return policy(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **pictures).logits[0]


def test_logits_are_those_of_each_rollout_alone(policy, batch):
    """Neither padding nor the other rows' pictures change what predicts a token: the position before it."""
    with torch.no_grad():
        logits = response_logits(policy, batch)
        assert logits.shape[:2] == batch.response_mask.shape
        for row in range(batch.size):
            length = int(batch.response_mask[row].sum())
            alone = stock_logits(policy, batch, row)[-length - 1 : -1]
            torch.testing.assert_close(logits[row, :length], alone, atol=2e-5, rtol=0)


def test_a_shared_picture_is_encoded_once_and_gets_every_rows_gradient(policy, prompts, monkeypatch):
    rollouts = [Rollout([20, 21, 22], [0.0] * 3, True), Rollout([30, 31], [0.0] * 2, True)]
    shared = build_experience([RolloutGroup(prompts["two"], rollouts, ["", ""], 0)], pad_id=0)
    encoded = count_encodings(policy, monkeypatch)
    together = vision_gradient(policy, response_logits(policy, shared)[shared.response_mask].square().sum())
    assert encoded == [len(prompts["two"].pixels["pixel_values"])]
    rows = [stock_logits(policy, shared, row)[-length - 1 : -1] for row, length in ((0, 3), (1, 2))]
    apart = vision_gradient(policy, torch.cat(rows).square().sum())
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-3 * float(apart.abs().max()))


def test_a_batch_without_pictures(policy, prompts):
    rollouts = [Rollout([20, 21], [0.0] * 2, True)]
    batch = build_experience([RolloutGroup(prompts["none"], rollouts, [""], 0)], pad_id=0)
    with torch.no_grad():
        torch.testing.assert_close(
            response_logits(policy, batch)[0], stock_logits(policy, batch, 0)[-3:-1], atol=1e-5, rtol=0
        )

"""Responses that have their prompts in common see what responses with a copy of their prompt see."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from atrl.models.load import PretrainedModel
from atrl.rollout.continuing import Continuation, Places, RepeatedPrompts, SharedPrompts, continue_prompts
from atrl.rollout.decoding import decoding_attention, growing_cache
from tests.unit.families import FAMILIES

GROUP, PROMPT, TOKENS = 3, 12, 6


def test_rows_stand_beside_those_of_their_prompt() -> None:
    """Prompts with two rows, none and one, of two queries each; [0, 1] are the first row's."""
    places = Places(torch.tensor([0, 0, 2]), prompts=3)
    rows = torch.arange(6.0).view(3, 1, 2, 1)
    beside = places.of_prompts(rows)
    assert beside.squeeze().tolist() == [[0, 1, 2, 3], [0, 0, 0, 0], [4, 5, 0, 0]]
    assert torch.equal(places.of_rows(beside), rows)


def test_full_groups_need_no_index() -> None:
    places = Places(torch.tensor([0, 0, 1, 1]), prompts=2)
    rows = torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    beside = places.of_prompts(rows)
    assert beside.shape == (2, 3, 4, 5)
    assert torch.equal(beside[1, :, 2:], rows[3]) and torch.equal(places.of_rows(beside), rows)


def prefilled(model, family: str, group: int = GROUP) -> tuple:
    """The cache of three prompts, two of them padded on the left, and their mask."""
    ids = torch.randint(5, 250, (3, PROMPT), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :7] = mask[1, :2] = 0
    cache, kinds = growing_cache(model.config), {}
    if family == "gemma3":
        kinds["token_type_ids"] = torch.zeros_like(ids)
    model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1, **kinds)
    return cache, mask


def following(model, rows: Continuation, mask: torch.Tensor) -> list[torch.Tensor]:
    """The logits after each of `TOKENS` tokens; before two of them some rows end, of one prompt all."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, 250, (3 * GROUP, TOKENS), generator=generator)
    positions, left = mask.sum(dim=1).repeat_interleave(GROUP), torch.arange(3 * GROUP)
    ended = {2: [0, 4, 5], 4: [1, 2, 7]}
    found = []
    for step in range(TOKENS):
        going = torch.tensor([row not in ended.get(step, ()) for row in left.tolist()])
        if not going.all():
            rows.keep(going)
            left = left[going]
        with rows.next_column() as inputs:
            output = model(
                input_ids=tokens[left, step, None], position_ids=positions[left, None] + step, use_cache=True, **inputs
            )
        found.append(output.logits[:, -1])
    return found


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_family_sees_the_same(family: str, tmp_path) -> None:
    model = PretrainedModel(path=str(FAMILIES[family](tmp_path / family))).load(tmp_path).model.eval()
    expected = following(model, RepeatedPrompts(*prefilled(model, family), GROUP), prefilled(model, family)[1])
    with decoding_attention(model):
        cache, mask = prefilled(model, family)
        rows = continue_prompts(model, cache, mask, GROUP)
        assert type(rows) is (RepeatedPrompts if family == "gemma3" else SharedPrompts)  # whose layers slide
        found = following(model, rows, mask)
    assert [len(logits) for logits in found] == [9, 9, 6, 6, 3, 3]
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5 * float(other.abs().max()), rtol=0)
    assert not any(torch.equal(first[:3], second[:3]) for first, second in pairwise(found))


@torch.no_grad()
def test_prompts_are_repeated_where_sharing_would_round_or_gain_nothing(policy) -> None:
    def kind(group: int = GROUP) -> type:
        return type(continue_prompts(policy, *prefilled(policy, "tiny"), group))

    assert kind() is RepeatedPrompts  # its own kernel
    with decoding_attention(policy):
        assert kind() is SharedPrompts
        assert kind(group=1) is RepeatedPrompts
        with torch.autocast("cpu", torch.bfloat16):
            assert kind() is RepeatedPrompts
        policy.to(torch.bfloat16)
        assert kind() is RepeatedPrompts


@torch.no_grad()
def test_the_prompts_keys_are_not_copied(policy) -> None:
    with decoding_attention(policy):
        cache, mask = prefilled(policy, "tiny")
        before = [layer.keys.data_ptr() for layer in cache.layers]
        rows = continue_prompts(policy, cache, mask, GROUP)
        following(policy, rows, mask)
    assert [key.data_ptr() for key, _ in rows._prompts] == before
    assert [layer.keys.shape[-2] for layer in rows._cache.layers] == [TOKENS] * len(before)

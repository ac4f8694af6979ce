"""Decoding without copies: the same tokens, the same numbers, and room that is really used."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from atrl.credit.probe import AttentionProbe
from atrl.models.attention import text_attention
from atrl.models.load import PretrainedModel
from atrl.rollout.decoding import GrowingLayer, decoding_attention, grouped_attention, growing_cache
from atrl.rollout.room import ROOM, room_at_the_end
from tests.unit.attention import FULL
from tests.unit.families import FAMILIES


class Module(torch.nn.Module):
    """What transformers' kernel asks a layer for."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, True


def states(generator: torch.Generator, columns: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(rows, 2, columns, 4, generator=generator) for _ in range(2))


def test_a_growing_layer_holds_what_transformers_own_holds() -> None:
    """Through a prompt, repeated rows, single tokens beyond its room, chosen rows, and several tokens at once."""
    generator, ours, theirs = torch.Generator().manual_seed(0), GrowingLayer(), DynamicLayer()

    def both(columns: int, rows: int) -> None:
        new = states(generator, columns, rows)
        for found, expected in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(found, expected)
        assert ours.get_seq_length() == theirs.get_seq_length()

    both(7, 3)
    for layer in (ours, theirs):
        layer.batch_repeat_interleave(2)
    for _ in range(2 * ROOM):
        both(1, 6)
    for layer in (ours, theirs):
        layer.batch_select_indices(torch.tensor([4, 0]))
    both(1, 2)
    both(3, 2)


def test_a_new_token_is_written_behind_the_others() -> None:
    generator, layer = torch.Generator().manual_seed(0), GrowingLayer()
    layer.update(*states(generator, 5))
    layer.update(*states(generator, 1))
    place = layer.keys.data_ptr()
    for _ in range(ROOM):
        layer.update(*states(generator, 1))
        assert layer.keys.data_ptr() == place
    layer.update(*states(generator, 1))
    assert layer.keys.data_ptr() != place and layer.keys.shape[-2] == 5 + ROOM + 2


@pytest.mark.parametrize(("prompt", "columns"), [(5, 5), (5, 6), (5, 5 + ROOM + 2), (100, 150), (100, 250)])
def test_the_planner_knows_how_much_room_there_is_in_the_end(prompt: int, columns: int) -> None:
    generator, layer = torch.Generator().manual_seed(0), GrowingLayer()
    layer.update(*states(generator, prompt, 1))
    for _ in range(columns - prompt):
        layer.update(*states(generator, 1, 1))
    held = layer.keys if layer._rooms is None else layer._rooms[0]
    assert held.shape[-2] == room_at_the_end(prompt, columns)


def test_the_prompts_own_tensors_are_left_alone() -> None:
    generator, layer = torch.Generator().manual_seed(0), GrowingLayer()
    prompt = states(generator, 5)
    before = prompt[0].clone()
    layer.update(*prompt)
    layer.update(*states(generator, 1))
    assert torch.equal(prompt[0], before) and layer.keys.data_ptr() != prompt[0].data_ptr()


def test_sliding_windows_are_transformers_own() -> None:
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])
    assert [type(layer) for layer in growing_cache(config).layers] == [DynamicSlidingWindowLayer, GrowingLayer]
    assert [type(layer) for layer in DynamicCache(config=config).layers] == [DynamicSlidingWindowLayer, DynamicLayer]


@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("groups", [1, 3])
def test_heads_of_a_group_are_as_many_tokens(new: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 2 * groups, new, 8, generator=generator)
    key, value = (torch.randn(2, 2, 5, 8, generator=generator) for _ in range(2))
    mask = torch.ones(2, 1, new, 5, dtype=torch.bool)
    mask[0, :, :, :2] = False
    for given in (mask, torch.where(mask, 0.0, -1e9)):
        found, nothing = grouped_attention(Module(groups), query, key, value, given, scaling=0.3)
        expected, _ = sdpa_attention_forward(Module(groups), query, key, value, given, scaling=0.3)
        assert found.shape == (2, new, 2 * groups, 8) and nothing is None
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(found, grouped_attention(Module(groups), query, key, value, None, scaling=0.3)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_decodes_to_the_same_numbers(family: str, tmp_path) -> None:
    """Rows of several lengths, padded on the left: next-token logits after each of five tokens."""
    model = PretrainedModel(path=str(FAMILIES[family](tmp_path / family))).load(tmp_path).model.eval()
    ids = torch.randint(5, 250, (3, 30), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 35, dtype=torch.long)
    mask[0, :9] = mask[1, :2] = 0

    def logits(cache: DynamicCache) -> torch.Tensor:
        found = []
        with torch.no_grad():
            for column in range(25, 30):
                first = 0 if column == 25 else column
                inputs = {"input_ids": ids[:, first : column + 1], "attention_mask": mask[:, : column + 1]}
                if column == 25 and family == "gemma3":
                    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
                output = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
                found.append(output.logits)
        return torch.cat(found)

    expected = logits(DynamicCache(config=model.config))
    with decoding_attention(model):
        assert text_attention(model) == "atrl_grouped_sdpa"
        found = logits(growing_cache(model.config))
    assert text_attention(model) == "sdpa"
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_a_probe_has_its_kernel_back(policy) -> None:
    probe = AttentionProbe(policy, [FULL])
    with pytest.raises(RuntimeError), decoding_attention(policy):
        assert text_attention(policy) == "atrl_grouped_sdpa"
        raise RuntimeError
    assert text_attention(policy) == "atrl_probe_sdpa"
    probe.detach()


def test_other_kernels_stay(policy) -> None:
    policy.set_attn_implementation("eager")
    with decoding_attention(policy):
        assert text_attention(policy) == "eager"

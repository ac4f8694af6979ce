"""How a batch is cut into what the model sees, and what comes out joined; by hand on two groups of two rollouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from atrl.experience import build_experience
from atrl.gradients import DoubleSum
from atrl.splitting import EvenSplit, GroupSplit, join_rows
from atrl.types import Experience, KeptTokens, Problem, Prompt, Rollout, RolloutGroup


def group(name: str, prompt_ids: list[int], *responses: list[int]) -> RolloutGroup:
    prompt = Prompt(Problem(id=name, question="?", answer="!"), prompt_ids, {}, (), prompt_ids)
    rollouts = [
        Rollout(ids, [-float(token) for token in ids], True, KeptTokens(torch.tensor(ids), torch.ones(len(ids)).int()))
        for ids in responses
    ]
    return RolloutGroup(prompt, rollouts, [""] * len(rollouts), policy_version=0)


@pytest.fixture
def batch() -> Experience:
    built = build_experience([group("a", [1], [5], [6, 7]), group("b", [2, 3, 4], [8], [9, 10, 11])], pad_id=0)
    return replace(built, old_logprobs=torch.arange(12.0).view(4, 3))


def test_even_pieces_keep_the_padding_of_the_whole(batch) -> None:
    split = EvenSplit(size=3)
    assert split.slices(batch) == [slice(0, 3), slice(3, 4)]
    assert split.piece(batch, slice(3, 4)).input_ids.tolist() == [[2, 3, 4, 9, 10, 11]]
    assert split.piece(batch, slice(0, 3)).input_ids.shape == (3, 6)


def test_a_group_is_padded_for_itself(batch) -> None:
    split = GroupSplit()
    assert split.slices(batch) == [slice(0, 2), slice(2, 4)]
    first, second = (split.piece(batch, rows) for rows in split.slices(batch))
    assert first.input_ids.tolist() == [[1, 5, 0], [1, 6, 7]]
    assert first.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert (first.prompt_length, first.response_length) == (1, 2)
    assert first.response_mask.tolist() == [[True, False], [True, True]]
    assert first.sampler_logprobs.tolist() == [[-5, 0], [-6, -7]]
    assert first.old_logprobs.tolist() == [[0, 1], [3, 4]]
    assert [kept.ids.tolist() for kept in first.kept] == [[5], [6, 7]]
    assert first.input_ids.is_contiguous() and first.old_logprobs.is_contiguous()
    assert second.input_ids.tolist() == batch.input_ids[2:].tolist()


def test_pieces_of_any_width_join_to_the_whole() -> None:
    joined = join_rows([torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0, 5.0]])], 3)
    assert joined.tolist() == [[1, 0, 0], [2, 0, 0], [3, 4, 5]]


def test_gradients_are_rounded_once() -> None:
    """1 and twice 2⁻²⁴: float32 loses each of the small ones added to 1, and not their sum."""
    parameter, untouched = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    total = DoubleSum()
    for value in (1.0, 2.0**-24, 2.0**-24):
        parameter.grad = torch.tensor([value])
        total.add([parameter, untouched])
        assert parameter.grad is None
    total.finish([parameter, untouched])
    assert parameter.grad.item() == 1 + 2.0**-23 and parameter.grad.dtype == torch.float32
    assert untouched.grad is None  # AdamW would move it on zeros
    parameter.grad = torch.tensor([3.0])
    total.add([parameter, untouched])
    total.finish([parameter, untouched])
    assert parameter.grad.item() == 3  # nothing is left of the step before

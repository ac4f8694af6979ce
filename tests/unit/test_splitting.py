"""How a batch is cut into what the model sees, and what comes out joined; by hand on two groups of two rollouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from atrl.experience import build_experience
from atrl.gradients import DoubleSum
from atrl.splitting import EvenSplit, GroupSplit, TokenBudgetSplit, join_rows
from atrl.types import Experience, KeptTokens, Problem, Prompt, Rollout, RolloutGroup
from tests.unit.ranks import run_ranks


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


@pytest.fixture
def uneven() -> Experience:
    """Prompts of 1, 3 and 2 tokens, with responses of 1 and 2, 1 and 3, 9 and 2."""
    groups = [
        group("a", [1], [5], [6, 7]),
        group("b", [2, 3, 4], [8], [9, 10, 11]),
        group("c", [3, 4], [20 + n for n in range(9)], [8, 9]),
    ]
    return build_experience(groups, pad_id=0)


def test_rollouts_of_like_length_come_together_and_groups_stay(uneven) -> None:
    """Lengths are 2, 3 | 4, 6 | 11, 4: by their longest c, b, a; in each the longer one first."""
    assert TokenBudgetSplit(max_tokens=1).order(uneven).tolist() == [4, 5, 3, 2, 1, 0]
    assert EvenSplit(size=2).order(uneven).tolist() == GroupSplit().order(uneven).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("budget", "sizes"),
    [
        (1, [1] * 6),  # each longer than the budget
        (10, [1, 1, 1, 2, 1]),  # 11; then 4, with 6 it would be 2·6; 6; 4 and 3, which take 2·5 = 10; 2
        (11, [1, 1, 1, 2, 1]),
        (12, [1, 2, 2, 1]),  # 11; 4 and 6 in 2·6 columns; 4 and 3; 2
        (22, [2, 3, 1]),  # 2·11; 3·6 for 6, 4 and 3, with 2 it would be 4·6
        (24, [2, 4]),
        (1000, [6]),
    ],
)
def test_pieces_stay_within_the_budget(uneven, budget: int, sizes: list[int]) -> None:
    split = TokenBudgetSplit(max_tokens=budget)
    ordered = uneven.rows(split.order(uneven))
    slices = split.slices(ordered)
    assert [rows.stop - rows.start for rows in slices] == sizes
    pieces = [split.piece(ordered, rows) for rows in slices]
    assert [key for piece in pieces for key in piece.keys] == ordered.keys and set(ordered.keys) == set(uneven.keys)
    for piece in pieces:
        assert piece.size == 1 or piece.input_ids.numel() <= budget
        assert piece.attention_mask.any(dim=0).all()  # no column that nobody fills


@pytest.mark.parametrize(
    ("budget", "sizes"),
    [
        (1, [1] * 6),
        (11, [1, 1, 2, 2]),  # 2 + 9; 2 + 2, with b's 2·3 + 2·3; b's 3 + 2·3, with a's 2·3 + 3·3; a's 1 + 2·2
        (20, [2, 4]),  # c's 2 + 2·9; b's and a's 2·3 + 4·3
        (1000, [6]),
    ],
)
def test_a_prompt_that_is_run_once_counts_once(uneven, budget: int, sizes: list[int]) -> None:
    split = TokenBudgetSplit(max_tokens=budget, share_prompts=True)
    slices = split.slices(uneven.rows(split.order(uneven)))
    assert [rows.stop - rows.start for rows in slices] == sizes


def test_chosen_rows_are_the_rollouts_as_they_were(uneven) -> None:
    order = torch.tensor([4, 5, 3, 2, 1, 0])
    there = uneven.rows(order)
    assert there.keys == [uneven.keys[row] for row in order] and there.pixels[0] is uneven.pixels[4]
    assert there.kept[2].ids.tolist() == [9, 10, 11]
    back = there.rows(order.argsort())
    assert torch.equal(back.input_ids, uneven.input_ids) and back.keys == uneven.keys


def pieces_in_step(responses: list[list[int]]) -> list[int]:
    own = responses[torch.distributed.get_rank()]
    batch = build_experience([group("a", [1], *([7] * length for length in own))], pad_id=0)
    split = TokenBudgetSplit(max_tokens=12, in_step=True)
    return [rows.stop - rows.start for rows in split.slices(batch.rows(split.order(batch)))]


def test_ranks_that_share_a_model_run_equally_many_pieces() -> None:
    """One has 4 rollouts of 12 tokens, a piece each; the other's 4 of 2 would fit into one, which is halved."""
    assert run_ranks(pieces_in_step, [[11] * 4, [1] * 4]) == [[1] * 4, [1] * 4]
    assert run_ranks(pieces_in_step, [[11, 11, 3, 3], [1] * 4]) == [[1, 1, 2], [1, 1, 2]]

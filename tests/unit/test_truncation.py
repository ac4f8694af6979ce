"""Top-k, top-p and min-p, and the trainer's log-probs over what they left; expected values by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_algorithms import composed, refusal

from atrl.config import check_config
from atrl.experience import build_experience
from atrl.forward import ForwardPass
from atrl.logprobs import keep_only
from atrl.rollout.base import Sampling, check_rollout
from atrl.rollout.settings import RolloutSettings
from atrl.rollout.transformers import TransformersSampler
from atrl.rollout.truncation import check_truncation, collect, kept_tokens
from atrl.types import KeptTokens, Rollout, RolloutGroup
from atrl.vocabulary import TokenDistributions, token_scores

PROBABILITIES = torch.tensor([[0.05, 0.4, 0.0, 0.3, 0.15, 0.1]])


def kept_of(probabilities: torch.Tensor, **limits) -> list[list[int]]:
    options = {"top_k": None, "top_p": 1.0, "min_p": 0.0} | limits
    return [row.nonzero().squeeze(1).tolist() for row in kept_tokens(probabilities.log(), **options)]


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({}, [0, 1, 3, 4, 5]),  # a token of probability 0 can never be drawn
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 3, 4]),
        ({"top_k": 99}, [0, 1, 3, 4, 5]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 3]),  # 0.4 alone doesn't reach it
        ({"top_p": 0.8}, [1, 3, 4]),  # 0.7, then 0.85
        ({"top_p": 1e-6}, [1]),
        ({"min_p": 0.3}, [1, 3, 4]),  # 0.12 at least
        ({"min_p": 1.0}, [1]),
        ({"top_k": 2, "top_p": 0.6}, [1, 3]),  # 0.4/0.7 = 0.571 does not reach 0.6
        ({"top_k": 2, "top_p": 0.57}, [1]),  # and does 0.57; of the whole distribution it would not
        ({"min_p": 0.7, "top_p": 0.57}, [1]),  # min-p comes first: of 0.7 as well
        ({"top_k": 3, "min_p": 0.7}, [1, 3]),
    ],
)
def test_what_is_left(limits: dict, left: list[int]) -> None:
    assert kept_of(PROBABILITIES, **limits) == [left]


def test_ties_with_the_last_token_stay() -> None:
    tied = torch.tensor([[0.2, 0.3, 0.2, 0.2, 0.1]])
    assert kept_of(tied, top_k=2) == [[0, 1, 2, 3]]


def test_what_reaches_top_p_exactly_is_enough() -> None:
    assert kept_of(torch.full((1, 4), 0.25), top_p=0.5) == [[0, 1]]


def test_rows_are_apart() -> None:
    both = torch.stack([PROBABILITIES[0], torch.tensor([0.01, 0.01, 0.95, 0.01, 0.01, 0.01])])
    assert kept_of(both, top_p=0.8) == [[1, 3, 4], [2]]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"top_k": 0}, "rollout.top_k must be at least 1, got 0: null"),
        ({"top_p": 0.0}, r"rollout.top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"rollout.top_p must be in \(0, 1\], got 1.5"),
        ({"min_p": -0.1}, r"rollout.min_p must be in \[0, 1\], got -0.1"),
        ({"min_p": 1.1}, r"rollout.min_p must be in \[0, 1\], got 1.1"),
    ],
)
def test_limits_are_checked_by_whoever_takes_them(limits: dict, message: str) -> None:
    for take in (
        lambda: check_truncation(**({"top_k": None, "top_p": 1.0, "min_p": 0.0} | limits)),
        lambda: Sampling(group_size=1, **limits),
        lambda: RolloutSettings(sampler=None, **limits),
    ):
        with pytest.raises(ValueError, match=message):
            take()


def test_greedy_takes_no_limits() -> None:
    with pytest.raises(ValueError, match="is greedy and takes no"):
        Sampling(group_size=1, temperature=0.0, top_p=0.9)
    assert not Sampling(group_size=1, temperature=0.0).truncates
    assert all(Sampling(group_size=1, **limit).truncates for limit in ({"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}))
    sampling = RolloutSettings(sampler=None, top_k=5, top_p=0.9, min_p=0.1).sampling
    assert (sampling.top_k, sampling.top_p, sampling.min_p) == (5, 0.9, 0.1)


def test_logprobs_over_what_was_kept_by_hand() -> None:
    """Odds 1 : 2 : 5 : 8; of the tokens 0 and 2 they are 1 : 5. The last row's set is of one token."""
    logits = torch.tensor([1.0, 2.0, 5.0, 8.0]).log().expand(3, -1)
    kept = KeptTokens(torch.tensor([0, 2, 1, 2, 3, 3]), torch.tensor([2, 3, 1]))
    for chunk in (None, 2, 1):
        distributions = TokenDistributions(temperature=1.0, kept=kept, chunk=chunk)
        logprobs, entropy = token_scores(logits, None, torch.tensor([2, 1, 3]), distributions)
        torch.testing.assert_close(logprobs.exp(), torch.tensor([5 / 6, 2 / 15, 1.0]))
        assert entropy[0] == pytest.approx(-(1 / 6) * math.log(1 / 6) - (5 / 6) * math.log(5 / 6))
        assert entropy[2] == pytest.approx(0.0, abs=1e-7)


def test_only_kept_tokens_get_a_gradient() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    distributions = TokenDistributions(temperature=1.0, kept=KeptTokens(torch.tensor([0, 2]), torch.tensor([2])))
    token_scores(logits, None, torch.tensor([0]), distributions)[0].sum().backward()
    torch.testing.assert_close(logits.grad[0], torch.tensor([0.5, 0.0, -0.5, 0.0]))


def test_collect_joins_what_was_kept_token_by_token() -> None:
    (kept,) = collect([[torch.tensor([4, 7]), torch.tensor([1])]])
    assert kept.ids.tolist() == [4, 7, 1] and kept.counts.tolist() == [2, 1]
    assert kept.ids.dtype == kept.counts.dtype == torch.int32


@pytest.mark.parametrize(
    ("ids", "counts"), [([4, 7, 2], [2, 1]), ([4, 7], [2]), ([5, 7, 1], [2, 1])], ids=["last", "short", "first"]
)
def test_a_token_that_was_left_out_is_caught(prompts, ids: list[int], counts: list[int]) -> None:
    rollout = Rollout([4, 1], [-0.1, -0.2], True)
    check_rollout(rollout, prompts["none"], ())
    check_rollout(replace(rollout, kept=KeptTokens(torch.tensor([4, 7, 1]), torch.tensor([2, 1]))), prompts["none"], ())
    wrong = replace(rollout, kept=KeptTokens(torch.tensor(ids), torch.tensor(counts)))
    with pytest.raises(AssertionError, match="returned a token that its top-k, top-p or min-p leaves out"):
        check_rollout(wrong, prompts["none"], ())


@pytest.mark.parametrize("limits", [{"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.4}, {"top_k": 9, "top_p": 0.7}])
def test_the_trainer_computes_what_the_sampler_drew_from(checkpoint, processor, policy, prompts, limits) -> None:
    """And not without the sampler's sets: the whole distribution gives other log-probs."""
    from atrl.data.templates import banned_token_ids
    from atrl.rollout.base import ModelHandle

    banned = banned_token_ids(processor)
    handle = ModelHandle(
        folder=checkpoint, model=policy, tokenizer=processor.tokenizer, banned_ids=banned, max_prompt_tokens=128,
        max_response_tokens=12, max_images=2,
    )  # fmt: skip
    sampler = TransformersSampler()
    sampler.start(handle)
    sampling = Sampling(group_size=3, max_response_tokens=12, temperature=0.8, **limits)
    groups: list[RolloutGroup] = sampler.generate(list(prompts.values()), sampling, seed="0/0")
    batch = build_experience(groups, pad_id=0)
    forward = ForwardPass(temperature=0.8, banned_ids=banned)
    with torch.no_grad():
        logprobs, _ = forward.logprobs(policy, batch)
        whole, _ = forward.logprobs(policy, replace(batch, kept=None))
    torch.testing.assert_close(logprobs, batch.sampler_logprobs, rtol=0, atol=1e-4)
    assert float((whole - batch.sampler_logprobs).abs().max()) > 0.1
    together = KeptTokens(*(torch.cat([getattr(tokens, name) for tokens in batch.kept]) for name in ("ids", "counts")))
    processed = keep_only(torch.zeros(int(batch.response_mask.sum()), policy.config.text_config.vocab_size), together)
    assert torch.equal((processed == 0).sum(-1), together.counts.long())
    part = batch.rows(slice(4, 6))
    assert [tokens.ids.tolist() for tokens in part.kept] == [tokens.ids.tolist() for tokens in batch.kept[4:6]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["rollout=server", "rollout.sampler.url=http://localhost:1", "rollout.top_p=0.9", "rollout.top_k=5"],
            "rollout.top_k=5, rollout.top_p=0.9 can't be used with rollout=server, which doesn't say which tokens",
        ),
        (["rollout=vllm", "rollout.top_p=0.9"], "rollout.top_k must be set where rollout.top_p or min_p leaves"),
        (["rollout=vllm", "rollout.min_p=0.1"], "rollout.top_k must be set where rollout.top_p or min_p leaves"),
        (["rollout=vllm", "rollout.top_k=50", "rollout.top_p=0.9"], None),
        (["rollout=transformers", "rollout.top_p=0.9"], None),
        (["rollout=server", "rollout.sampler.url=http://localhost:1"], None),
    ],
)
def test_limits_need_a_sampler_that_says_what_it_keeps(overrides: list[str], message: str | None) -> None:
    if message is None:
        check_config(composed(*overrides))
    else:
        assert refusal(*overrides).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["rollout=server", "rollout.sampler.url=http://localhost:1"],
            "trainer.deterministic=true can't be used with rollout=server, which generates in batches",
        ),
        (
            ["rollout=vllm", "rollout.sampler.tensor_parallel_size=2"],
            "trainer.deterministic=true can't be used with rollout.sampler.tensor_parallel_size=2: an engine that",
        ),
        (["trainer.strategy=fsdp"], "trainer.deterministic=true can't be used with trainer.strategy=fsdp"),
        (["rollout=vllm"], None),
        (["rollout=transformers"], None),
    ],
)
def test_determinism_needs_groups_that_are_apart(overrides: list[str], message: str | None) -> None:
    if message is None:
        check_config(composed("trainer.deterministic=true", *overrides))
    else:
        check_config(composed(*overrides))
        assert refusal("trainer.deterministic=true", *overrides).startswith(message)

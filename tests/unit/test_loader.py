"""Batches of prompts: every problem once a pass, full batches, visits told apart, shares that make up the whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atrl import parallel
from atrl.data.loader import PromptLoader
from atrl.data.prompts import PromptBuilder
from atrl.types import Problem

PROBLEMS = [Problem(id=f"p{n}", question="?" * (60 if n == 2 else 1), answer="1") for n in range(5)]


@pytest.fixture
def loader(processor):
    """Five problems, of which the third is too long; batches of 3."""
    builder = PromptBuilder(processor=processor, max_prompt_tokens=40)
    return lambda: PromptLoader(PROBLEMS, builder, batch_size=3, steps=4, seed=0)


def test_each_pass_visits_what_fits_once_and_names_the_visit(loader):
    """Twelve prompts of four that fit: three whole passes, and a batch that crosses from one to the next."""
    source = loader()
    prompts = [prompt for batch in source for prompt in batch]
    assert len(prompts) == 12 and source.dropped == {"p2"}
    for epoch in range(3):
        visited = [prompt for prompt in prompts if prompt.epoch == epoch]
        assert sorted(prompt.problem.id for prompt in visited) == ["p0", "p1", "p3", "p4"]
    assert len({prompt.key for prompt in prompts}) == 12


def test_shares_of_ranks_make_up_the_batch(loader, monkeypatch):
    whole = [[prompt.key for prompt in batch] for batch in loader()]
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        shares.append([[prompt.key for prompt in batch] for batch in loader()])
    assert [first + second for first, second in zip(*shares, strict=True)] == whole


def test_taken_prompts_are_not_handed_out_again(loader):
    source = loader()
    batches = iter(source)
    first = next(batches)
    taken = source.take(2)
    keys = [prompt.key for prompt in (*first, *taken, *next(batches))]
    assert len(set(keys)) == 8 and not source.take(0)


def test_a_taken_prompt_is_built_again_without_moving_on(loader):
    """Also one of an earlier pass, by another rank's loader, from what is left without pictures."""
    source, other = loader(), loader()
    prompts = source.take(10)
    assert [prompt.epoch for prompt in prompts] == [0] * 4 + [1] * 4 + [2] * 2
    for prompt in prompts[::-1]:
        again = other.again(replace(prompt, problem=replace(prompt.problem, question=""), pixels={}))
        assert (again.key, again.place, again.token_ids) == (prompt.key, prompt.place, prompt.token_ids)
        assert again.problem == prompt.problem
    assert [prompt.key for prompt in other.take(10)] == [prompt.key for prompt in prompts]


def test_data_of_which_nothing_fits_is_refused(processor):
    builder = PromptBuilder(processor=processor, max_prompt_tokens=3)
    shortest = min(len(builder.build(problem).token_ids) for problem in PROBLEMS)
    message = rf"rollout\.max_prompt_tokens=3: .* found 0, and the shortest of the others has {shortest} tokens: raise"
    with pytest.raises(ValueError, match=message):
        PromptLoader(PROBLEMS, builder, batch_size=2, steps=1, seed=0).take(1)


@pytest.mark.parametrize(("long", "enough"), [(3, True), (7, True), (15, False)])
def test_small_data_fill_a_large_batch_where_one_in_ten_fits(processor, long, enough):
    """One that fits among `long` that don't: 25 of it are as many passes, and not too few after one."""
    short = Problem(id="short", question="?", answer="1")
    problems = [short, *(replace(short, id=f"long{n}", question="?" * 60) for n in range(long))]
    builder = PromptBuilder(processor=processor, max_prompt_tokens=40)
    loader = PromptLoader(problems, builder, batch_size=25, steps=1, seed=0)
    if enough:
        assert {prompt.problem.id for prompt in loader.take(25)} == {"short"}
        return
    with pytest.raises(ValueError, match=r"^hardly any prompt fits into rollout\.max_prompt_tokens=40"):
        loader.take(25)

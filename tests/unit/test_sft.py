"""The supervised warm-up: what its loss is, over one process and several, and which weights it keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from atrl import parallel
from atrl.alarms import NonFiniteStop
from atrl.rewards.exact import ExactAnswer
from atrl.rewards.weighted import WeightedReward
from atrl.rollout.base import Sampling
from atrl.sections import SftSettings
from atrl.sft import HeldOutScore, SelectBest, SupervisedModule, cosine_factor, mean_target_logprob
from tests.unit.ranks import run_ranks
from tests.unit.scripted import RIGHT, WRONG, Scripted, numbered_prompts

TARGETS = {"square": "The answer is \\boxed{3}", "wide": "x", "none": "That is 90."}


@pytest.fixture
def answered(prompts):
    """Prompts with worked answers of different lengths."""
    return [replace(prompts[name], problem=replace(prompts[name].problem, target=t)) for name, t in TARGETS.items()]


def tokens(prompt, tokenizer) -> list[int]:
    return [*tokenizer(prompt.problem.target, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def test_it_is_the_cross_entropy_of_the_answer_and_its_end(policy, processor, answered):
    """By transformers' own loss, which is the mean over the labels that are not -100."""
    tokenizer = processor.tokenizer
    for prompt in answered:
        target = tokens(prompt, tokenizer)
        ids = torch.tensor([prompt.token_ids + target])
        labels = torch.tensor([[-100] * len(prompt.token_ids) + target])
        kinds = (ids == policy.config.image_token_id).int()
        with torch.no_grad():
            expected = policy(input_ids=ids, labels=labels, mm_token_type_ids=kinds, **prompt.pixels).loss
            found = mean_target_logprob(policy, tokenizer, [prompt], tokenizer.eos_token_id)
        torch.testing.assert_close(-found, expected, rtol=1e-5, atol=1e-5)


def test_every_answer_token_of_the_batch_counts_the_same(policy, processor, answered):
    """Not every answer: the mean over all tokens, so a long answer weighs more than a short one."""
    tokenizer = processor.tokenizer
    with torch.no_grad():
        alone = [mean_target_logprob(policy, tokenizer, [prompt], tokenizer.eos_token_id) for prompt in answered]
        together = mean_target_logprob(policy, tokenizer, answered, tokenizer.eos_token_id)
    lengths = [len(tokens(prompt, tokenizer)) for prompt in answered]
    assert len(set(lengths)) == 3
    expected = sum(length * mean for length, mean in zip(lengths, alone, strict=True)) / sum(lengths)
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)


def share_of_the_loss(checkpoint: Path, answered: list) -> float:
    """The first rank has one answer and the second two."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    policy = AutoModelForImageTextToText.from_pretrained(checkpoint, attn_implementation="sdpa").eval()
    with torch.no_grad():
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        return mean_target_logprob(policy, tokenizer, parallel.share(answered), tokenizer.eos_token_id).item()


def test_the_shares_of_ranks_add_up_to_the_batchs_mean(policy, processor, checkpoint, answered):
    with torch.no_grad():
        whole = mean_target_logprob(policy, processor.tokenizer, answered, processor.tokenizer.eos_token_id).item()
    assert sum(run_ranks(share_of_the_loss, checkpoint, answered)) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_warm_up_before_the_weights_change(policy, processor, answered, what):
    settings = SftSettings(steps=2, warmup_steps=1)
    module = SupervisedModule(policy=policy, tokenizer=processor.tokenizer, end_id=0, settings=settings)
    norm, head = policy.model.language_model.norm.weight, policy.lm_head.weight
    if what == "loss":
        with torch.no_grad():
            norm[0] = torch.nan
    else:
        norm.register_hook(lambda gradient: gradient * torch.nan)
    before = head.clone()
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    with pytest.raises(NonFiniteStop, match=rf"^warm-up, step 1: alarm non_finite: the {what} is"):
        trainer.fit(module, DataLoader([answered, answered], batch_size=None))
    assert torch.equal(head, before)


def test_the_rate_rises_to_its_peak_and_falls_to_a_twentieth():
    """Warm-up over 4 of 12 steps; half-way down the cosine is 0.05 + 0.95/2."""
    factors = [cosine_factor(step, 4, 12) for step in range(13)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.525) and factors[12] == pytest.approx(0.05)
    assert factors[4:] == sorted(factors[4:], reverse=True)


def test_the_best_weights_are_kept_and_the_last_step_is_always_scored():
    """Of 10 problems 2, 5, 5 and 1 right after steps 2, 4, 6 and 7: step 4 wins, the first of the best."""
    prompts = numbered_prompts(10)
    calls = [{f"p{n}": [RIGHT if n < right else WRONG] for n in range(10)} for right in (2, 5, 5, 1)]
    policy = torch.nn.Linear(1, 1, bias=False)
    module = SimpleNamespace(
        policy=policy, settings=SimpleNamespace(steps=7), log=lambda *args, **options: None, first_step=0
    )
    trainer = SimpleNamespace(loggers=[], lightning_module=module, fit_loop=SimpleNamespace(total_batch_idx=0))
    reward = WeightedReward(parts={"exact": ExactAnswer()})
    selection = SelectBest(prompts, Scripted(*calls), Sampling(group_size=1), reward, every=2)
    for index in range(7):
        with torch.no_grad():
            policy.weight.fill_(index + 1)
        selection.on_train_batch_end(trainer, module, None, None, index)
    selection.on_train_end(trainer, module)
    assert selection.history == [(2, 0.2), (4, 0.5), (6, 0.5), (7, 0.1)]
    assert policy.weight.item() == 4


def ends_of_training() -> tuple:
    """Each rank's samplers' questions, and what it knows of both ends."""
    sampler = Scripted({"p0": [WRONG], "p1": [RIGHT], "p2": [WRONG]}, {"p0": [RIGHT], "p1": [RIGHT], "p2": [WRONG]})
    reward = WeightedReward(parts={"exact": ExactAnswer()})
    ends = HeldOutScore(numbered_prompts(3), sampler, Sampling(group_size=1), reward, seed="s")
    ends.on_train_start(None, None)
    ends.on_train_end(None, None)
    return [ids for ids, _ in sampler.asked], ends.before.accuracy, ends.after.accuracy


def test_both_ends_are_scored_by_all_ranks_together():
    first, second = run_ranks(ends_of_training)
    assert first == ([["p0"], ["p0"]], pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert second == ([["p1", "p2"], ["p1", "p2"]], *first[1:])


def test_without_held_out_problems_no_end_is_scored():
    ends = HeldOutScore(
        [], Scripted(), Sampling(group_size=1), WeightedReward(parts={"exact": ExactAnswer()}), seed="s"
    )
    ends.on_train_start(None, None)
    ends.on_train_end(None, None)
    assert ends.before is None and ends.after is None

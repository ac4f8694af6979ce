"""Whole training steps worked out again, from what the step recorded and with nothing of the step's own code."""

from __future__ import annotations

import copy
import csv
import json
from dataclasses import replace

import pytest
import torch
from lightning import Callback

from atrl.data.templates import banned_token_ids
from atrl.models.policy import response_logits
from tests.integration.test_training import TRANSFORMERS, Watch

TEMPERATURE, CLIP, RATE, BETAS, DECAY = 0.7, 0.02, 1e-3, (0.8, 0.9), 0.3
OPTIONS = (
    *(TRANSFORMERS, "trainer.max_steps=3", "trainer.evaluate_samples=0", f"rollout.temperature={TEMPERATURE}"),
    *(f"optimizer.learning_rate={RATE}", f"optimizer.betas={list(BETAS)}", f"optimizer.weight_decay={DECAY}"),
    *(f"optimizer.max_gradient_norm={CLIP}", "optimizer.warmup_steps=1", "optimizer.decay_to=0.5"),
)
FACTORS = (1.0, 1.0, 0.5)
"""Of the learning rate: up to its peak in one step, then down to a half over the two that follow."""


class Initial(Watch):
    """Also keeps a copy of the policy that training starts from."""

    def on_train_start(self, trainer, pl_module) -> None:
        super().on_train_start(trainer, pl_module)
        self.policy = copy.deepcopy(pl_module.policy)


def logprobs_of(policy, batch, banned: tuple[int, ...]) -> torch.Tensor:
    logits = response_logits(policy, batch).float() / TEMPERATURE
    logits[..., list(banned)] = -torch.inf
    chosen = batch.input_ids[:, batch.prompt_length :, None]
    return logits.log_softmax(-1).gather(-1, chosen)[..., 0].masked_fill(~batch.response_mask, 0.0)


def stepped(watch: Initial, banned: tuple[int, ...], loss_of) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The weights after all recorded steps, and each gradient's norm before it was clipped."""
    policy, norms = watch.policy, []
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY)
    for record, factor in zip(watch.records, FACTORS, strict=True):
        optimizer.param_groups[0]["lr"] = RATE * factor
        optimizer.zero_grad()
        loss_of(policy, record, banned).backward()
        gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
        for gradient in gradients:
            gradient.mul_(min(1.0, CLIP / norms[-1]))
        optimizer.step()
    return policy.state_dict(), norms


def assert_same_path(watch: Initial, run, expected: dict[str, torch.Tensor]) -> None:
    """Adam divides by a gradient's size, so what is only rounding can move a weight: all together must agree."""
    names = list(expected)
    after = run.trained.module.policy.state_dict()
    way, gap = (
        torch.cat([(other[name] - expected[name]).flatten() for name in names]).norm() for other in (watch.start, after)
    )
    assert way > 0.1 and gap < 1e-2 * way, (float(way), float(gap))


def test_grpo_with_credit_on_the_rollouts_above_the_mean(train) -> None:
    """−Σ w·A·log π over all tokens of the batch, with w where A > 0 and 1 elsewhere; clipped, AdamW, schedule."""

    def loss(policy, record, banned) -> torch.Tensor:
        mask, advantages = record.experience.response_mask, record.advantages.flatten()[:, None]
        weights = torch.where(advantages > 0, record.credit.weights, mask.float())
        return -(weights * advantages * logprobs_of(policy, record.experience, banned)).sum() / mask.sum()

    watch = Initial()
    run = train(*OPTIONS, "algorithm.credit_on=positive", watch=watch)
    banned = banned_token_ids(run.parts.model.load(run.folder / "again").processor)
    assert banned and run.trained.module.forward_pass.banned_ids == banned
    expected, norms = stepped(watch, banned, loss)
    assert [record.metrics["loss/gradient_norm"] for record in watch.records] == pytest.approx(norms, rel=1e-2)
    assert min(norms) > CLIP
    assert [record.metrics["loss/learning_rate"] for record in watch.records] == [RATE * factor for factor in FACTORS]
    assert_same_path(watch, run, expected)


def test_papo_adds_its_loss_per_token(train) -> None:
    """−A·log π − γ·(eᵈ − d − 1) − η·(log π + log π_mask), d = log π_mask − log π; d clipped at 20, eᵈ − d − 1 at 10."""
    gamma, eta = 0.3, 0.2

    def loss(policy, record, banned) -> torch.Tensor:
        batch, mask = record.experience, record.experience.response_mask
        seen = logprobs_of(policy, batch, banned)
        masked = logprobs_of(policy, replace(batch, pixels=batch.masked_pixels), banned)
        d = (masked - seen).clamp(-20, 20)
        auxiliary = -gamma * (d.exp() - d - 1).clamp(max=10) - eta * (seen + masked)
        return (auxiliary - record.advantages.flatten()[:, None] * seen)[mask].sum() / mask.sum()

    watch = Initial()
    run = train(*OPTIONS, "credit=papo", f"credit.gamma={gamma}", f"credit.eta={eta}", watch=watch)
    banned = banned_token_ids(run.parts.model.load(run.folder / "again").processor)
    expected, norms = stepped(watch, banned, loss)
    assert [record.metrics["loss/gradient_norm"] for record in watch.records] == pytest.approx(norms, rel=1e-2)
    assert_same_path(watch, run, expected)


def test_papo_adds_its_loss_to_every_update_of_a_batch(train) -> None:
    """The second too, where the policy is no longer the one that sampled: then −min(r·A, clip(r)·A) for −A·log π."""
    gamma = 0.3
    watch, updates = Initial(), 2
    options = ("trainer.max_steps=1", f"algorithm.updates_per_batch={updates}", "credit=papo", "credit.eta=0")
    run = train(*OPTIONS, *options, f"credit.gamma={gamma}", watch=watch)
    banned = banned_token_ids(run.parts.model.load(run.folder / "again").processor)
    policy, (record,) = watch.policy, watch.records
    batch, mask = record.experience, record.experience.response_mask
    advantages = record.advantages.flatten()[:, None]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY)
    with torch.no_grad():
        old = logprobs_of(policy, batch, banned)
    for _ in range(updates):
        seen = logprobs_of(policy, batch, banned)
        masked = logprobs_of(policy, replace(batch, pixels=batch.masked_pixels), banned)
        ratio, d = (seen - old).exp(), (masked - seen).clamp(-20, 20)
        loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
        loss = (loss - gamma * (d.exp() - d - 1).clamp(max=10))[mask].sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP).item()
        optimizer.step()
    assert record.metrics["loss/gradient_norm"] == pytest.approx(norm, rel=1e-2)
    assert_same_path(watch, run, policy.state_dict())


def test_the_overlong_penalty_is_part_of_the_reward_and_of_the_advantage(train) -> None:
    """A cut response loses 2: its reward is that of its parts less 2, and the group's advantages are of that."""
    watch = Watch()
    train(
        *(TRANSFORMERS, "algorithm=dapo", "algorithm.dynamic_sampling=null", "trainer.max_steps=1"),
        *("rollout.max_response_tokens=54", "algorithm.overlong.weight=2.0", "trainer.evaluate_samples=0"),
        watch=watch,
    )
    (record,) = watch.records
    rewards = [reward for group in record.rewards for reward in group]
    cut = [not rollout.finished for group in record.groups for rollout in group.rollouts]
    assert any(cut) and not all(cut)
    for reward, was_cut in zip(rewards, cut, strict=True):
        overlong = reward.parts["overlong"]
        assert overlong == -1 if was_cut else -1 <= overlong <= 0
        earned = reward.parts["exact"] + 0.1 * reward.parts["format"]
        assert reward.total == pytest.approx(earned + 2 * overlong)
    totals = torch.tensor([reward.total for reward in rewards]).view(4, 4)
    honest = (totals - totals.mean(1, keepdim=True)) / (totals.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(record.advantages, honest, atol=1e-4, rtol=1e-4)


class Moments(Callback):
    """What is on the disk, and what was logged, after each step."""

    def __init__(self, folder) -> None:
        self.saved, self.path = [], folder / "checkpoints" / "last" / "state.json"

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.saved.append(json.loads(self.path.read_text())["step"] if self.path.exists() else 0)


def test_checkpoints_and_scores_come_when_they_are_due(train, tmp_path) -> None:
    moments = Moments(tmp_path / "run")
    run = train(
        *(TRANSFORMERS, "trainer.max_steps=5", "trainer.checkpoint_every=2", "trainer.evaluate_every=3"),
        "trainer.grounding_samples=0",
        watch=moments,
    )
    assert moments.saved == [0, 0, 2, 2, 4]  # a step is saved when the next one begins
    assert json.loads(moments.path.read_text())["step"] == 5
    with (run.folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("eval/accuracy")]
    assert [int(row["step"]) for row in rows] == [3]  # of the policy that has had three steps
    assert 0 <= float(rows[0]["eval/greedy_accuracy"]) <= 1

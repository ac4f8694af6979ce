"""Loss and gradient of the same rollouts by atrl and by TRL; for `step.py`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from device import torch_device
from step_sides import as_its_users_load_it, letter_share, parts_of, trl_settings
from trl_peer import peer

from atrl import pipeline
from atrl.experience import build_experience
from atrl.forward import ForwardPass
from atrl.loss.aggregation import BatchTotals
from atrl.models.load import LoadedModel
from atrl.rollout.settings import RolloutSettings
from atrl.rollout.transformers import TransformersSampler
from atrl.types import Problem, RolloutGroup


def agreement(arguments: argparse.Namespace) -> dict[str, object]:
    """Loss and gradient of the same rollouts, of any length, by both: how far they are apart, in float32."""
    arguments = argparse.Namespace(**vars(arguments) | {"rollout": "transformers"})
    with tempfile.TemporaryDirectory() as temporary:
        parts = parts_of(arguments, Path(temporary), "trainer.precision=32-true")
        pipeline.prepare_process(parts)
        loaded = parts.model.load(Path(temporary) / "model")
        loaded.model.to(torch_device(arguments.trainer))
        builder = parts.rollout.prompt_builder(loaded, parts.model.instruction)
        problems = [parts.source.load("train")[number] for number in range(arguments.prompts)]
        sampler = TransformersSampler()
        sampler.start(RolloutSettings(sampler=sampler).handle(loaded, problems))
        groups = sampler.generate(builder.build_all(problems).prompts, parts.rollout.sampling, seed="0")
        trl_loss, trl_gradient = trl_gradients(arguments, parts, loaded, problems, groups)
        loss, gradient = atrl_gradients(parts, loaded, groups)
    lengths = {len(rollout.token_ids) for group in groups for rollout in group.rollouts}
    return {
        "response_lengths": [min(lengths), max(lengths)],
        "loss": [loss, trl_loss],
        "loss_difference": abs(loss - trl_loss) / abs(trl_loss),
        "gradient_norm": [float(gradient.norm()), float(trl_gradient.norm())],
        "gradient_difference": float((gradient - trl_gradient).norm() / trl_gradient.norm()),
        "gradient_cosine": float(torch.nn.functional.cosine_similarity(gradient, trl_gradient, dim=0)),
    }


def atrl_gradients(
    parts: pipeline.Parts, loaded: LoadedModel, groups: Sequence[RolloutGroup]
) -> tuple[float, torch.Tensor]:
    """By atrl's forward pass and objective; over the whole vocabulary, as TRL."""
    device = loaded.model.device
    batch = build_experience(groups, pad_id=loaded.processor.tokenizer.pad_token_id, device=device)
    rewards = [[reward.total for reward in group] for group in parts.reward.score(groups)]
    advantages = parts.objective.advantage(torch.tensor(rewards, device=device)).flatten()
    advantages = advantages[:, None].expand(batch.response_mask.shape)
    totals = BatchTotals(
        tokens=int(batch.response_mask.sum()), sequences=batch.size, max_response_tokens=batch.response_length
    )
    loaded.model.zero_grad()
    logprobs, _ = ForwardPass(temperature=1.0, banned_ids=(), share_prompts=True).logprobs(loaded.model, batch)
    loss, _ = parts.objective(logprobs, advantages, batch, totals)
    loss.backward()
    return loss.item(), flat_gradient(loaded.model)


def trl_gradients(
    arguments: argparse.Namespace,
    parts: pipeline.Parts,
    loaded: LoadedModel,
    problems: Sequence[Problem],
    groups: Sequence[RolloutGroup],
) -> tuple[float, torch.Tensor]:
    """By TRL's own training loop, which is given the responses and otherwise left alone."""
    from transformers import TrainerCallback

    rollouts = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    found: list[torch.Tensor] = []

    def given(prompts: Sequence, trainer) -> dict[str, list]:
        ids, *_ = trainer._tokenize_prompts(prompts)
        assert ids == [prompt.token_ids for prompt, _ in rollouts], "the two make other tokens of a prompt"
        return {
            "prompt_ids": ids,
            "completion_ids": [rollout.token_ids for _, rollout in rollouts],
            "logprobs": [rollout.logprobs for _, rollout in rollouts],
        }

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **options) -> None:
            found.append(flat_gradient(model))

    own = as_its_users_load_it(loaded)
    trainer, turns = peer(own, problems, letter_share, trl_settings(arguments, parts.trainer, steps=1), given)
    trainer.remove_callback(turns)
    trainer.add_callback(Keep())
    trainer.train()
    norm = turns.logs.values["grad_norm"]  # what the optimizer gets is clipped
    return turns.logs.values["loss"], found[0] / found[0].norm() * norm


def flat_gradient(model) -> torch.Tensor:
    """All of a model's gradients in one vector of the host's, in float64 for the sums over it."""
    return torch.cat([parameter.grad.flatten().cpu().double() for parameter in model.parameters()])

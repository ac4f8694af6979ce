"""Whether a policy's errors are of the kind that RL can mend: do two independent policy gradients point the same way?

    python benchmarks/gradient_signal.py [CHECKPOINT]

The last line is one JSON object: the cosine of the gradients of two disjoint batches of 64 prompts × 8 samples, and of
one with the gradient of shuffled advantages.
"""

from __future__ import annotations

import argparse
import json

import torch

from atrl.advantage import GroupAdvantage, ShuffledAdvantage
from atrl.data.geometry import GeometryProblems
from atrl.data.prompts import PromptBuilder
from atrl.data.templates import banned_token_ids
from atrl.experience import build_experience, micro_batches
from atrl.forward import ForwardPass
from atrl.models.load import PretrainedModel
from atrl.rewards.exact import ExactAnswer
from atrl.rewards.weighted import WeightedReward
from atrl.rollout.base import Sampling
from atrl.rollout.settings import RolloutSettings
from atrl.rollout.transformers import TransformersSampler


def main(checkpoint: str, prompts: int = 64) -> None:
    """Sample three batches and compare their gradients."""
    loaded = PretrainedModel(path=checkpoint).load(None)
    problems = GeometryProblems().load("train")
    sampler = TransformersSampler()
    sampler.start(RolloutSettings(sampler=sampler).handle(loaded, problems))
    forward_pass = ForwardPass(temperature=1.0, banned_ids=banned_token_ids(loaded.processor))
    reward = WeightedReward(parts={"exact": ExactAnswer(weight=1.0)})

    def gradient(start: int, advantage: GroupAdvantage) -> torch.Tensor:
        built = PromptBuilder(processor=loaded.processor).build_all(problems[start : start + prompts])
        groups = sampler.generate(built.prompts, Sampling(group_size=8), seed=str(start))
        rewards = torch.tensor([[verdict.total for verdict in group] for group in reward.score(groups)])
        print(f"accuracy of {rewards.numel()} rollouts: {rewards.mean():.3f}")
        batch = build_experience(groups, pad_id=loaded.processor.tokenizer.pad_token_id)
        advantages = advantage(rewards, seed="0").flatten()
        loaded.model.zero_grad()
        for rows in micro_batches(batch.size, 64):
            part = batch.rows(rows)
            logprobs, _ = forward_pass.logprobs(loaded.model, part)
            loss = -(logprobs * advantages[rows, None]).sum()
            loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in loaded.model.parameters()])

    one, other = gradient(0, GroupAdvantage()), gradient(prompts, GroupAdvantage())
    shuffled = gradient(2 * prompts, ShuffledAdvantage())
    cosine = torch.nn.functional.cosine_similarity
    print(json.dumps({"cosine": cosine(one, other, dim=0).item(), "shuffled": cosine(other, shuffled, dim=0).item()}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="tiny", help="'tiny', a folder or a hub name (default tiny)")
    try:
        main(parser.parse_args().checkpoint)
    except ValueError as error:
        parser.error(str(error))

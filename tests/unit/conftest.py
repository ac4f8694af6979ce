"""Prompts of all shapes for the tiny untrained checkpoint, and a batch of them."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def prompts(processor) -> dict:
    """Prompts by name: a square picture, a wide one, two pictures of different shapes, and none."""
    from PIL import Image

    from atrl.data.geometry import GeometryProblems
    from atrl.data.prompts import PromptBuilder
    from atrl.types import Problem

    wide = Image.linear_gradient("L").resize((210, 70)).convert("RGB")
    tall = Image.radial_gradient("L").resize((60, 180)).convert("RGB")
    problems = {
        "square": GeometryProblems(train_size=1).load("train")[0],
        "wide": Problem(id="wide", question="What is in <image>?", answer="x", images=(wide,)),
        "two": Problem(id="two", question="Is <image> taller than <image> or not?", answer="x", images=(tall, wide)),
        "none": Problem(id="none", question=f"What is {' + '.join('3' * 30)}?", answer="90"),  # longer than any other
    }
    return {name: PromptBuilder(processor=processor).build(problem) for name, problem in problems.items()}


@pytest.fixture(scope="session")
def batch(prompts):
    """One rollout for each prompt: left padding, right padding, and a different number of image columns in each row."""
    return rollout_batch([(prompts["wide"], 5), (prompts["none"], 7), (prompts["two"], 9), (prompts["square"], 2)])


def rollout_batch(rows):
    """An Experience of random responses, from pairs of a prompt and a response length."""
    import torch

    from atrl.experience import build_experience
    from atrl.types import Rollout, RolloutGroup

    generator = torch.Generator().manual_seed(0)
    groups = []
    for prompt, length in rows:
        token_ids = torch.randint(0, 500, (length,), generator=generator).tolist()
        groups.append(RolloutGroup(prompt, [Rollout(token_ids, [-1.0] * length, True)], [""], policy_version=0))
    return build_experience(groups, pad_id=0)

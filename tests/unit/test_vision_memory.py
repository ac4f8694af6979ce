"""A frozen vision tower runs once in a step for the same pictures, and nothing comes out otherwise for it."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from atrl.data.prompts import PromptBuilder
from atrl.experience import build_experience
from atrl.forward import ForwardPass
from atrl.models.families import vision_tower
from atrl.models.load import LoadedModel, PretrainedModel
from atrl.models.vision import frozen_vision_once
from atrl.sharding import whole
from atrl.types import Problem, Rollout, RolloutGroup
from tests.unit.families import FAMILIES
from tests.unit.ranks import run_ranks
from tests.unit.test_sharding import batch_of, divided

PASS = ForwardPass(temperature=1.0, banned_ids=())


def counted(model) -> list[int]:
    """A list that grows by one whenever the tower's first matrix is used."""
    runs: list[int] = []
    products = (nn.Linear, nn.Conv2d, nn.Conv3d)
    first = next(part for part in vision_tower(model).modules() if isinstance(part, products))
    first.register_forward_hook(lambda *_: runs.append(1))
    return runs


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, tmp_path_factory) -> LoadedModel:
    folder = FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    inside = request.param.startswith("qwen")  # whose towers hold the projector: it is frozen with them
    return PretrainedModel(path=str(folder), freeze_vision=True, freeze_projector=inside).load(folder)


@pytest.fixture(scope="module")
def batch(loaded):
    """Two prompts of two responses each; the first two rows' micro-batch has one picture, the last three's two."""
    from PIL import Image

    wide = Image.linear_gradient("L").resize((84, 56)).convert("RGB")
    builder = PromptBuilder(processor=loaded.processor)
    groups = []
    for name, picture in (("wide", wide), ("turned", wide.rotate(90))):
        prompt = builder.build(Problem(id=name, question="What is <image>?", answer="x", images=(picture,)))
        rollouts = [Rollout([20, 21, 22], [0.0] * 3, True), Rollout([30, 31], [0.0] * 2, True)]
        groups.append(RolloutGroup(prompt, rollouts, ["", ""], 0))
    return build_experience(groups, pad_id=0)


def passes(model, batch) -> list[torch.Tensor]:
    """Log-probs and gradients of micro-batches of 1, 1 and 2 rollouts; each twice, first without gradients."""
    found = []
    model.zero_grad()
    for rows in (slice(0, 1), slice(1, 2), slice(1, 4)):
        part = batch.rows(rows)
        with torch.no_grad():
            found.append(PASS.logprobs(model, part)[0])
        logprobs, _ = PASS.logprobs(model, part)
        logprobs.sum().backward()
        found.append(logprobs.detach())
    return found + [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_not_a_bit_is_different_and_the_tower_runs_once(loaded, batch) -> None:
    model = loaded.model
    runs = counted(model)
    expected = passes(model, batch)
    assert len(runs) == 6
    runs.clear()
    with frozen_vision_once(model):
        found = passes(model, batch)
    assert len(runs) == 2  # the first picture alone, and both together
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    projected = [name for name, p in model.named_parameters() if "projector" in name and p.grad.any()]
    assert bool(projected) == hasattr(model.model, "multi_modal_projector")  # trained, so it runs each time


def test_a_copy_of_the_policy_takes_what_the_policy_saw(loaded, batch) -> None:
    reference = copy.deepcopy(loaded.model).requires_grad_(False).eval()
    with torch.no_grad():
        expected = PASS.logprobs(reference, batch)[0]
    runs = [counted(loaded.model), counted(reference)]
    with frozen_vision_once(loaded.model, reference, None), torch.no_grad():
        PASS.logprobs(loaded.model, batch)
        assert torch.equal(PASS.logprobs(reference, batch)[0], expected)
    assert [len(each) for each in runs] == [1, 0]


def test_a_policy_that_is_its_own_reference(loaded, batch) -> None:
    """As one with adapters is, which are passed by."""
    runs = counted(loaded.model)
    with frozen_vision_once(loaded.model, loaded.model), torch.no_grad():
        first, second = (PASS.logprobs(loaded.model, batch)[0] for _ in range(2))
    assert torch.equal(first, second) and len(runs) == 1


def test_it_is_forgotten_at_the_end(loaded, batch) -> None:
    kept: list[weakref.ref] = []
    tower, runs = vision_tower(loaded.model), counted(loaded.model)
    handle = tower.register_forward_hook(lambda _, __, output: kept.append(weakref.ref(output.last_hidden_state)))
    for _ in range(2):
        with frozen_vision_once(loaded.model), torch.no_grad():
            PASS.logprobs(loaded.model, batch)
            assert kept[-1]() is not None
        gc.collect()
        assert kept[-1]() is None and "forward" not in vars(tower)
    handle.remove()
    assert len(runs) == 2


def test_a_tower_that_learns_runs_each_time(loaded, batch) -> None:
    model = copy.deepcopy(loaded.model).requires_grad_(True)
    runs = counted(model)
    with frozen_vision_once(model):
        passes(model, batch)
    assert len(runs) == 6


def sharded_passes(checkpoint: Path, shares: list[list[list[str]]], remember: bool) -> dict:
    """Micro-batches of each rank one after the other, which name their pictures."""
    policy = divided(checkpoint)
    tower = vision_tower(policy)
    tower.requires_grad_(False)
    runs = counted(policy)
    rank = torch.distributed.get_rank()
    pixels: dict[str, dict] = {}  # one dictionary a problem, as in a batch
    losses = []
    with frozen_vision_once(*([policy] if remember else [])):
        for names in shares[rank]:
            batch = batch_of(checkpoint, *names)
            batch.pixels[:] = [pixels.setdefault(name, entry) for name, entry in zip(names, batch.pixels, strict=True)]
            loss = PASS.logprobs(policy, batch)[0].sum()
            loss.backward()
            losses.append(loss.item())
    gradients = {name: whole(p.grad) for name, p in policy.named_parameters() if p.grad is not None}
    return {"runs": len(runs), "losses": losses, "gradients": gradients}


def test_ranks_of_a_divided_model_run_the_tower_together(checkpoint: Path) -> None:
    """What one knows and the other does not, both run; also where one has no picture at all."""
    shares = [[["square"], ["square"], ["none"], ["square"]], [["wide"], ["square"], ["wide"], ["wide"]]]
    plain = run_ranks(sharded_passes, checkpoint, shares, False)
    once = run_ranks(sharded_passes, checkpoint, shares, True)
    assert [rank["runs"] for rank in plain] == [4, 4]
    # The second micro-batch is new to the second rank, the third to the first; the last to neither.
    assert [rank["runs"] for rank in once] == [3, 3]
    for one, other in zip(once, plain, strict=True):
        assert one["losses"] == other["losses"] and one["gradients"].keys() == other["gradients"].keys()
        assert all(torch.equal(one["gradients"][name], value) for name, value in other["gradients"].items())

"""Ranks read the same heads: those that the first finds, with the policy divided among them."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from atrl import parallel
from atrl.callbacks.anchor_credit import AnchorCreditCallback
from atrl.credit.atrl import AtrlCredit
from atrl.credit.base import HeadSearch
from atrl.credit.calibration import HeadCalibration, masked_prompts
from atrl.credit.head_cache import cache_folder, cache_key, store_scores
from atrl.credit.uniform import UniformCredit
from atrl.credit.visual_dependency import VisualDependencyCredit
from atrl.forward import ForwardPass
from atrl.rollout.base import Sampling
from atrl.rollout.bound import BoundRollouts
from atrl.types import Rollout, RolloutGroup
from tests.unit.ranks import run_ranks

SEARCH = HeadSearch(count=2, criterion="dependency", layers=None, row="predicting", sink_factor=4.0)


class Sampler:
    """Gives each prompt its own response, by the problem's name; none on rank `fails`."""

    def __init__(self, fails: int | None = None) -> None:
        self.fails = fails
        self.asked: list[str] = []

    def generate(self, prompts, sampling, *, seed):
        if self.fails == parallel.rank():
            raise ValueError(f"rank {self.fails} has no response to give")
        self.asked += [prompt.key for prompt in prompts]
        groups = []
        for prompt in prompts:
            token_ids = [3 + byte for byte in prompt.key.encode()]
            rollout = Rollout(token_ids, [-1.0] * len(token_ids), True)
            groups.append(RolloutGroup(prompt, [rollout], [""], policy_version=0))
        return groups


def module_of(policy, sampler) -> SimpleNamespace:
    return SimpleNamespace(
        policy=policy,
        rollouts=BoundRollouts(sampler, Sampling(group_size=8)),
        pad_id=0,
        device=torch.device("cpu"),
        optimizer_settings=SimpleNamespace(micro_batch_size=2, micro_batch_tokens=None),
        forward_pass=ForwardPass(temperature=1.0, banned_ids=()),
    )


def calibration(checkpoint: Path, folder: Path, kind: type[HeadCalibration] = HeadCalibration) -> HeadCalibration:
    from transformers import AutoProcessor

    from atrl.data.geometry import GeometryProblems
    from atrl.data.prompts import PromptBuilder

    builder = PromptBuilder(processor=AutoProcessor.from_pretrained(checkpoint))
    prompts = [builder.build(problem) for problem in GeometryProblems(train_size=5).load("train")]
    return kind(prompts, masked_prompts(prompts, builder), folder)


def load(checkpoint: Path):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(checkpoint, attn_implementation="sdpa").eval()


def divided_choice(checkpoint: Path, folder: Path) -> dict:
    """Of a rank whose disk is its own, as on another node: twice, the second time from the first's cache."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    from atrl.sharding import Sharding, shard

    own = folder / str(parallel.rank())
    own.mkdir()
    os.environ["XDG_CACHE_HOME"] = str(own)
    policy, sampler, whole = load(checkpoint), Sampler(), []
    shard(policy, init_device_mesh("cpu", (parallel.world_size(),)), Sharding())
    first, *_, last = policy.model.language_model.layers

    def look(*_) -> None:
        whole.append(any(not isinstance(parameter, DTensor) for parameter in first.parameters()))

    last.register_forward_hook(look)
    made = calibration(checkpoint, own)
    heads = [made.choose(SEARCH, module_of(policy, sampler)) for _ in range(2)]
    return {"heads": heads, "asked": sampler.asked, "whole": whole}


def test_a_divided_policy_stays_divided_and_reads_like_a_whole_one(checkpoint, tmp_path, monkeypatch):
    """Of five responses the ranks sample two and three, and each reads all of them, two at a time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "alone"))
    alone, sampler = calibration(checkpoint, tmp_path), Sampler()
    heads = alone.choose(SEARCH, module_of(load(checkpoint), sampler))
    first, second = run_ranks(divided_choice, checkpoint, tmp_path)
    assert first["heads"] == second["heads"] == [heads, heads]
    assert (len(first["asked"]), len(second["asked"])) == (2, 3) and first["asked"] + second["asked"] == sampler.asked
    assert first["whole"] == second["whole"] == [False] * 6  # two passes a batch; the second time none
    found, expected = (json.loads((folder / "heads.json").read_text()) for folder in (tmp_path / "0", tmp_path))
    assert (found["cached"], expected["cached"]) == (True, False)
    torch.testing.assert_close(torch.tensor(found["scores"]), torch.tensor(expected["scores"]), atol=1e-6, rtol=0)
    assert list((tmp_path / "1").iterdir()) == []  # the first rank alone writes


def test_half_of_the_patches_are_black(checkpoint, tmp_path):
    """VPPO's share; the prompts are the same but for their pixels."""
    made = calibration(checkpoint, tmp_path)
    for prompt, masked in zip(made.prompts, made.other, strict=True):
        changed = (prompt.pixels["pixel_values"] != masked.pixels["pixel_values"]).any(dim=1)
        assert changed.sum() == round(0.5 * len(changed)) > 0
        assert (masked.key, masked.token_ids) == (prompt.key, prompt.token_ids)


class OfItsRank(HeadCalibration):
    """Measures other scores on every rank, as on GPUs that round differently."""

    def _measure(self, search, module, sampler, sampling):
        return torch.eye(3, 4, dtype=torch.float64).roll(parallel.rank(), dims=0)


def chosen(checkpoint: Path, folder: Path, kind: type[HeadCalibration], sampler: Sampler):
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        return calibration(checkpoint, folder, kind).choose(SEARCH, module_of(load(checkpoint), sampler))
    except ValueError as error:
        return str(error)


def test_all_ranks_take_the_scores_of_the_first(checkpoint, tmp_path):
    assert run_ranks(chosen, checkpoint, tmp_path, OfItsRank, Sampler()) == [((0, 0), (1, 1))] * 2


def test_all_ranks_stop_where_one_finds_none(checkpoint, tmp_path):
    """Or the others would wait for its responses."""
    found = run_ranks(chosen, checkpoint, tmp_path, HeadCalibration, Sampler(fails=1))
    assert found == ["rank 1 has no response to give"] * 2


def test_cached_scores_are_those_of_the_same_blanked_pictures(policy, prompts, tmp_path, monkeypatch):
    """A grey of another processor is another one to compare with, though picture and question are the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    search = HeadSearch(count=2, criterion="sensitivity", layers=None, row="predicting", sink_factor=4.0)
    sampling = Sampling(group_size=1)
    shown, blank = [prompts["square"]], [prompts["wide"]]
    key = cache_key(policy, search, shown, sampling, other=blank)
    scores = [[0.1, 0.2, 0.3, 0.4], [0.9, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.8]]
    store_scores(cache_folder() / f"{key}.json", {"scores": scores})
    module = module_of(policy, Sampler(fails=0))
    assert HeadCalibration(shown, blank, tmp_path).choose(search, module) == ((1, 0), (2, 3))
    other = [replace(blank[0], pixels={name: tensor + 1 for name, tensor in blank[0].pixels.items()})]
    with pytest.raises(ValueError, match=r"^rank 0 has no response to give$"):
        HeadCalibration(shown, other, tmp_path).choose(search, module)


def test_a_run_that_goes_on_keeps_its_heads(policy, processor):
    """The policy has changed since they were found, and may now prefer others."""
    callback = AnchorCreditCallback(AtrlCredit(heads="auto"), processor, calibration=None)
    callback.load_state_dict({"fractions": [0.1], "recalls": [], "heads": [[1, 2], [0, 3]]})
    module = SimpleNamespace(policy=policy, credit=None)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext))
    try:
        callback.on_train_start(trainer, module)
        assert callback.scheme.heads == module.credit.scheme.heads == ((1, 2), (0, 3))
    finally:
        callback.teardown(trainer, module, "fit")
    assert callback.state_dict()["heads"] == ((1, 2), (0, 3))


def test_a_summary_says_a_ratio_only_where_there_is_one(processor):
    """Reports put it beside what came out; "auto" follows each response."""
    ratios = {"auto": None, 0.15: 0.15}
    for asked, said in ratios.items():
        callback = AnchorCreditCallback(VisualDependencyCredit(anchor_ratio=asked), processor)
        assert callback.summary()["anchor_ratio"] == said
    assert AnchorCreditCallback(UniformCredit(), processor).summary()["anchor_ratio"] is None

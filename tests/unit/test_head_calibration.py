"""Ranks read the same heads: those that the first found."""

from __future__ import annotations

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
from atrl.credit.calibration import HeadCalibration
from atrl.credit.head_cache import cache_folder, cache_key, store_scores
from atrl.rollout.base import Sampling
from atrl.rollout.bound import BoundRollouts
from tests.unit.ranks import run_ranks


class OfItsRank(HeadCalibration):
    """Finds other heads on every rank; or none, where there is no folder to write to."""

    def _choose(self, search, module):
        if self.folder is None:
            raise ValueError(f"rank {parallel.rank()} finds no head")
        return ((parallel.rank(), 7),)


def found_with(folder: Path | None):
    try:
        return OfItsRank(prompts=[], blank=[], folder=folder).choose(
            None, SimpleNamespace(policy=torch.nn.Linear(1, 1))
        )
    except ValueError as error:
        return str(error)


def test_all_ranks_take_the_choice_of_the_first():
    assert run_ranks(found_with, Path()) == [((0, 7),)] * 2


def test_all_ranks_stop_where_the_first_finds_none():
    """Or the others would wait for its choice."""
    assert run_ranks(found_with, None) == ["rank 0 finds no head"] * 2


class Sampler:
    """Has no response to give."""

    def generate(self, prompts, sampling, *, seed):
        raise ValueError("responses are sampled")


def test_cached_scores_are_those_of_the_same_blanked_pictures(policy, prompts, tmp_path, monkeypatch):
    """A grey of another processor is another one to compare with, though picture and question are the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    search = HeadSearch(count=2, criterion="sensitivity", layers=None, row="predicting", sink_factor=4.0)
    sampling = Sampling(group_size=1)
    shown, blank = [prompts["square"]], [prompts["wide"]]
    key = cache_key(policy, search, shown, sampling, blank=blank)
    scores = [[0.1, 0.2, 0.3, 0.4], [0.9, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.8]]
    store_scores(cache_folder() / f"{key}.json", {"scores": scores})
    module = SimpleNamespace(policy=policy, rollouts=BoundRollouts(Sampler(), sampling))
    assert HeadCalibration(shown, blank, tmp_path).choose(search, module) == ((1, 0), (2, 3))
    other = [replace(blank[0], pixels={name: tensor + 1 for name, tensor in blank[0].pixels.items()})]
    with pytest.raises(ValueError, match=r"^responses are sampled$"):
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

"""Ranks read the same heads: those that the first found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from atrl import parallel
from atrl.credit.calibration import HeadCalibration
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

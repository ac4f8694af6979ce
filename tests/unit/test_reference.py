"""The reference of a warmed-up run, kept beside its checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from atrl.checkpoint import Checkpoint
from atrl.reference import REFERENCE, check_reference, keep_reference


def model(value: float) -> nn.Module:
    """Two matrices of which one has two names, as a tied head has."""
    made = nn.ModuleDict({"embedding": nn.Linear(3, 2, bias=False), "head": nn.Linear(3, 2), "norm": nn.LayerNorm(2)})
    made["head"].weight = made["embedding"].weight
    for parameter in made.parameters():
        nn.init.constant_(parameter, value)
    return made


def at(root: Path) -> Checkpoint:
    (root / "step_000001").mkdir(parents=True, exist_ok=True)
    return Checkpoint((root / "step_000001").resolve(), {"step": 1})


def test_a_run_that_goes_on_has_the_reference_that_it_began_with(tmp_path: Path) -> None:
    """Wherever it goes on; from there as well."""
    first, second = tmp_path / "first", tmp_path / "second"
    keep_reference(first, model(3.0), None)
    for root, start in ((first, at(first)), (second, at(first)), (second, at(second))):
        loaded = model(-1.0)
        check_reference(start)
        keep_reference(root, loaded, start)
        assert all(torch.equal(parameter, torch.full_like(parameter, 3.0)) for parameter in loaded.parameters())
        assert (root / REFERENCE).is_file()


def test_one_without_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"step_000001 can't go on: the KL term's reference.*{REFERENCE}: put it"):
        check_reference(at(tmp_path))

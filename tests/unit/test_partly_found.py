"""Anchors between those that a masked picture finds and those that the generator knows."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from credit_evidence import batch_of
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from atrl.credit.oracle import OracleCredit
from atrl.credit.visual_dependency import VisualDependencyCredit
from atrl.types import Evidence, MaskedView

ROOT = Path(__file__).parents[2]
DIVERGENCE = torch.tensor([[0.1, 0.5, 0.0, 0.3, 0.1], [0.4, 0.2, 0.0, 9.0, 9.0]])
READING = torch.tensor([[False, True, True, False, False], [False, True, False, True, False]])
BATCH = replace(batch_of([(5, 4), (3, 4)]), reading=READING)
ZEROS = torch.zeros(DIVERGENCE.shape)
EVIDENCE = Evidence(ZEROS, ZEROS, {}, MaskedView(ZEROS, DIVERGENCE))


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("partly_found")


@pytest.mark.parametrize(
    ("name", "anchors"),
    [("FoundReading", [[0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]), ("ReadingAndFound", [[0, 1, 1, 1, 0], [1, 1, 0, 0, 0]])],
)
def test_by_hand(module, name, anchors) -> None:
    """Found are tokens 1 and 3 of the first (0.8 of 1 nat) and token 0 of the second (0.4 of 0.6); 1 and 2, and 1,
    read. Padding is no anchor, whatever is said of it."""
    output = getattr(module, name)(anchor_mass=0.65).assign(BATCH, EVIDENCE)
    assert output.anchors.int().tolist() == anchors
    weights = (1 + 2 * torch.tensor(anchors)) * BATCH.response_mask
    expected = weights / weights.sum(dim=1, keepdim=True) * torch.tensor([[5.0], [3.0]])
    torch.testing.assert_close(output.weights, expected)
    torch.testing.assert_close(output.density, DIVERGENCE * BATCH.response_mask)


def test_between_the_two_that_are_mixed(module) -> None:
    """Where all that is found reads, the one is what is found and the other is what reads, to the bit."""
    batch = replace(BATCH, reading=torch.tensor([[True, True, False, True, False], [True, True, False, False, False]]))
    pairs = {module.FoundReading: VisualDependencyCredit(anchor_mass=0.65), module.ReadingAndFound: OracleCredit()}
    for mixed, pure in pairs.items():
        own = mixed(anchor_mass=0.65).assign(batch, EVIDENCE)
        torch.testing.assert_close(own.weights, pure.assign(batch, EVIDENCE).weights, rtol=0, atol=0)
    none = replace(BATCH, reading=None)
    assert not module.FoundReading().assign(none, EVIDENCE).anchors.any()


def test_the_study_names_them_so(module, monkeypatch) -> None:
    """Through the composed configuration, as a run of the study is given them."""
    tasks = importlib.import_module("study_tasks")
    for name in tasks.MIXED:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            scheme = instantiate(compose("train", overrides=tasks.SCHEMES[name]).credit)
        assert scheme.name == name and scheme.needs_reading and scheme.picture_mask.ratio == 0.5

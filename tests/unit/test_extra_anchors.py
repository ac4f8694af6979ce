"""Found anchors with one kind of those that don't read: the study's way to tell which of them do harm."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from credit_evidence import batch_of
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from atrl.credit.visual_dependency import VisualDependencyCredit
from atrl.models.load import PretrainedModel
from atrl.types import Evidence, MaskedView

ROOT = Path(__file__).parents[2]
EQUALS, TWO, SEVEN = 40, 17, 22
DIVERGENCE = torch.tensor([[0.3, 0.5, 0.0, 0.3, 0.4], [0.4, 0.2, 0.0, 9.0, 9.0]])
READING = torch.tensor([[False, True, True, False, False], [False, True, False, True, False]])
SAID = torch.tensor([[EQUALS, TWO, SEVEN, EQUALS, SEVEN], [TWO, SEVEN, EQUALS, TWO, EQUALS]])
BATCH = replace(
    batch_of([(5, 4), (3, 4)]),
    input_ids=torch.cat([torch.full((2, 1), TWO), SAID], dim=1),
    reading=READING,
)
ZEROS = torch.zeros(DIVERGENCE.shape)
EVIDENCE = Evidence(ZEROS, ZEROS, {}, MaskedView(ZEROS, DIVERGENCE))


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("extra_anchors")


@pytest.mark.parametrize(
    ("name", "anchors"),
    [("FoundWithDigits", [[0, 1, 0, 0, 1], [1, 1, 0, 0, 0]]), ("FoundWithWords", [[1, 1, 0, 1, 0], [0, 1, 0, 0, 0]])],
)
def test_by_hand(module, name, anchors) -> None:
    """All tokens that depend on the picture are found, and 1 and 2 read, 2 without being found; of the others 0 and 3
    are words in the first response, 4 is a digit, as is 0 in the second. Padding is no anchor, digit or not."""
    output = getattr(module, name)(anchor_mass=1.0).assign(BATCH, EVIDENCE)
    assert output.anchors.int().tolist() == anchors
    weights = (1 + 2 * torch.tensor(anchors)) * BATCH.response_mask
    expected = weights / weights.sum(dim=1, keepdim=True) * torch.tensor([[5.0], [3.0]])
    torch.testing.assert_close(output.weights, expected)
    torch.testing.assert_close(output.density, DIVERGENCE * BATCH.response_mask)


def test_both_kinds_are_all_that_is_found(module) -> None:
    """Each holds what reads; together they hold what `visual_dependency` finds, and no token of one kind is in both."""
    digits, words = (
        getattr(module, name)(anchor_mass=1.0).assign(BATCH, EVIDENCE).anchors
        for name in ("FoundWithDigits", "FoundWithWords")
    )
    found = VisualDependencyCredit(anchor_mass=1.0).assign(BATCH, EVIDENCE).anchors
    assert torch.equal(digits | words, found)
    assert torch.equal(digits & words, found & READING)
    without = module.FoundWithWords(anchor_mass=1.0).assign(replace(BATCH, reading=None), EVIDENCE).anchors
    assert torch.equal(without, words & ~torch.isin(SAID, torch.tensor(module.DIGITS)))


def test_digits_are_those_of_the_checkpoints(module) -> None:
    """Every token that says a digit, and no other; the study's checkpoints share the shipped one's tokenizer."""
    tokenizer = PretrainedModel(path="tiny").load(None).processor.tokenizer
    said = {id for id in range(len(tokenizer)) if any(letter in "0123456789" for letter in tokenizer.decode([id]))}
    assert said == set(module.DIGITS)


def test_the_study_names_them_so(module, monkeypatch) -> None:
    """Through the composed configuration, as a run of the study is given them."""
    tasks = importlib.import_module("study_tasks")
    for name in tasks.WITH_EXTRAS:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            scheme = instantiate(compose("train", overrides=tasks.SCHEMES[name]).credit)
        assert scheme.name == name and scheme.needs_reading and scheme.picture_mask.ratio == 0.5

"""The sums of `benchmarks/step.py`, and how its two sides take turns."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def scripts_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


def test_the_speedup_is_that_of_the_median_round() -> None:
    """Rounds of 2, 3 and 8 times: 3, and no median of drawn rounds can be out of 2 to 8."""
    found = script("step").speedup([1.0, 2.0, 1.0], [2.0, 6.0, 8.0])
    assert found == {"speedup_vs_trl": 3.0, "speedup_ci95": [2.0, 8.0], "speedup_range": [2.0, 8.0]}


def test_equal_rounds_have_no_interval() -> None:
    assert script("step").speedup([1.0, 2.0, 3.0], [1.5, 3.0, 4.5])["speedup_ci95"] == [1.5, 1.5]


def test_a_side_takes_a_step_when_asked_and_rests_otherwise() -> None:
    turns, taken = script("trl_peer").Turns(), []

    def train() -> None:
        for step in range(3):
            turns.on_step_begin(None, None, None)
            taken.append(step)
            turns.on_step_end(None, None, None)

    turns.start(train)
    for expected in range(3):
        assert taken == list(range(expected))
        assert turns.step() > 0
    assert taken == [0, 1, 2]


def test_an_error_of_the_other_side_is_raised_here() -> None:
    turns = script("trl_peer").Turns()

    def train() -> None:
        turns.on_step_begin(None, None, None)
        raise RuntimeError("out of memory")

    turns.start(train)
    with pytest.raises(RuntimeError, match="out of memory"):
        turns.step()


def test_responses_without_spread_are_all_as_long(checkpoint) -> None:
    """As `kept_memory.py` wants them."""
    from atrl.models.load import PretrainedModel

    loaded = PretrainedModel(path=str(checkpoint)).load(checkpoint)
    batch = script("micro_batches").experience(loaded, typical=7, spread=0)
    assert batch.response_mask.sum(dim=1).tolist() == [7] * batch.size


def test_spread_groups_encode_their_pictures_more_often(checkpoint) -> None:
    """What `micro_batches.py` counts of both orders, on the same batch."""
    from atrl.models.load import PretrainedModel
    from atrl.splitting import EvenSplit, TokenBudgetSplit

    benchmark = script("micro_batches")
    batch = benchmark.experience(PretrainedModel(path=str(checkpoint)).load(checkpoint))
    assert len(set(batch.response_mask.sum(dim=1).tolist())) > 1
    whole = benchmark.cut(batch, EvenSplit(size=batch.size), False)
    assert (whole["micro_batches"], whole["pictures_encoded"]) == (1, benchmark.PROMPTS)
    assert whole["cells"] == whole["largest"] == batch.input_ids.numel()
    once = benchmark.cut(batch, EvenSplit(size=batch.size), True)
    spared = (batch.size - benchmark.PROMPTS) * batch.prompt_length
    assert whole["cells"] - once["cells"] == spared and once["pictures_encoded"] == benchmark.PROMPTS
    budget = benchmark.cut(batch, TokenBudgetSplit(max_tokens=2000), False)
    assert budget["largest"] <= 2000 and budget["padding"] < whole["padding"]

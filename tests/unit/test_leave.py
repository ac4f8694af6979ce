"""What a run's summary says credit cost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from atrl.leave import _SCORED_BY, accuracies, credit_overhead, next_commands
from atrl.report.run_folder import Accuracy
from tests.unit.scripted import RIGHT, WRONG
from tests.unit.test_score import scored

CONF = Path(__file__).parents[2] / "conf"
SECONDS = {"rollout": 4.0, "reward": 1.0, "score": 2.0, "credit": 0.5, "update": 3.0, "sync": 0.0}


@pytest.mark.parametrize(
    ("trained", "overhead"),
    [
        (SimpleNamespace(credit=object()), 0.5 / 10),
        (SimpleNamespace(credit=None), None),
        (None, None),
    ],
)
def test_credit_overhead_by_hand(trained, overhead):
    assert credit_overhead(SECONDS, trained) == (overhead and pytest.approx(overhead))


def test_what_became_of_each_problem_is_in_the_summary_as_the_report_reads_it():
    """Two gained and none lost of three: 2·1/2² = 0.5."""
    before = scored({"p0": [WRONG], "p1": [WRONG], "p2": [RIGHT]})
    after = scored({"p0": [RIGHT], "p1": [RIGHT], "p2": [RIGHT]})
    found = Accuracy.model_validate(accuracies(before, after))
    assert (found.paired.problems, found.paired.gained, found.paired.lost, found.paired.p) == (3, 2, 0, 0.5)
    assert accuracies(None, after)["paired"] is None and accuracies(None, None)["paired"] is None


def test_what_evaluation_takes_by_itself_is_known():
    defaults = OmegaConf.load(CONF / "evaluate.yaml").defaults
    chosen = {group: name for item in defaults if item != "_self_" for group, name in item.items()}
    assert {group: chosen[group] for group in _SCORED_BY} == _SCORED_BY


def test_what_comes_next_is_about_the_runs_own_problems():
    """The demo's commands are bare; another run's name its task, whether the command or an experiment chose it."""
    demo = {"data": "geometry", "reward": "exact", "rollout": "vllm", "credit": "atrl"}
    assert next_commands("outputs/a", [], demo) == [
        "evaluate.py checkpoint=outputs/a", "train.py credit=uniform", "train.py credit.anchor_ratio=0.3 seed=1",
    ]  # fmt: skip
    overrides = [
        "experiment=moving_markers", "rollout=transformers", "+credit.seed=3", "seed=2", "rollout.video_frames=4",
        "data.fps=4", "hydra.run.dir=outputs/a", "trainer.max_steps=3",
    ]  # fmt: skip
    same = "experiment=moving_markers rollout=transformers rollout.video_frames=4 data.fps=4 trainer.max_steps=3"
    assert next_commands("outputs/a", overrides, demo | {"data": "moving_markers", "rollout": "transformers"}) == [
        "evaluate.py checkpoint=outputs/a data=moving_markers rollout=transformers rollout.video_frames=4 data.fps=4",
        f"train.py {same} credit=uniform",
        f"train.py {same} credit.anchor_ratio=0.3 seed=1",
    ]

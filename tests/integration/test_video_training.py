"""Runs on videos, from the generator to the report."""

from __future__ import annotations

import json

import pytest
import torch

from atrl.report.heatmaps import MAX_COLUMNS

OVERRIDES = ("data=moving_markers", "rollout=transformers", "rollout.video_frames=8", "trainer.grounding_samples=4")


@pytest.mark.parametrize("scheme", ["atrl", "vppo", "visual_dependency", "papo", "hidden_cosine"])
def test_schemes_train_on_videos(train, scheme: str) -> None:
    """Those that mask pictures mask videos too, and see a difference; the others read video tokens."""
    run = train(*OVERRIDES, f"credit={scheme}")
    step = run.trained.module.last_step
    assert step.step == 2 and torch.isfinite(step.credit.weights).all()
    assert all("pixel_values_videos" in pixels for pixels in step.experience.pixels)
    if step.credit.density is not None:
        assert (step.credit.density > 0).any()
    assert run.trained.module.trainer.callback_metrics["rollout/logprob_gap_max"] < 1e-4
    rows = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    assert all(row["timestamps"] == [[0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]] for row in rows)
    if scheme == "atrl":  # eight frames of 4×4 tokens, side by side
        maps = [token for row in rows for token in row["attention"][0]]
        assert {(len(token), len(token[0])) for token in maps} == {(4, 4 * MAX_COLUMNS)}
    assert all((run.folder / row["images"][0]).is_file() for row in rows)
    grounding = json.loads((run.folder / "grounding.json").read_text())
    assert grounding["after"]["blank"]["samples"] == 4


def test_more_frames_than_there_are_and_fewer(train) -> None:
    for frames, patches in ((4, 2), (64, 4)):
        run = train(*OVERRIDES, f"rollout.video_frames={frames}", "trainer.max_steps=1", name=f"run{frames}")
        grids = [pixels["video_grid_thw"].tolist() for pixels in run.trained.module.last_step.experience.pixels]
        assert grids == [[[patches, 8, 8]]] * 16

"""What a run records for its report, against the step that it is of."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrl.credit.weights import choose_anchors, perceptual_load
from tests.integration.test_training import Watch
from tests.unit.families import FAMILIES


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_samples_groups_and_densities_are_those_of_the_steps(train) -> None:
    watch = Watch()
    run = train("rollout=transformers", "trainer.evaluate_samples=0", "algorithm.kl_coefficient=0.01", watch=watch)
    samples, groups = lines_of(run.folder / "samples.jsonl"), lines_of(run.folder / "groups.jsonl")
    rollouts = lines_of(run.folder / "rollouts.jsonl")
    assert [line["step"] for line in groups] == [1] * 4 + [2] * 4
    for line, start in zip(groups, range(0, len(rollouts), 4), strict=True):
        rows = rollouts[start : start + 4]
        assert line["problem"] == rows[0]["problem"]
        assert sum(count for count, _, _ in line["statuses"].values()) == 4
        assert sum(tokens for _, tokens, _ in line["statuses"].values()) == sum(len(row["tokens"]) for row in rows)
        total = sum(reward for _, _, reward in line["statuses"].values())
        assert total == pytest.approx(sum(row["reward"] for row in rows))

    for sample in samples:
        record = watch.records[sample["step"] - 1]
        row = next(
            i for i, entry in enumerate(rollouts[16 * (sample["step"] - 1) :]) if entry["tokens"] == sample["tokens"]
        )
        length = len(sample["tokens"])
        # The clusters, worked out again, are those that the anchors came from.
        of, density = np.array(sample["clusters"]["of"]), record.credit.density[row, :length].numpy()
        load = perceptual_load(density, of, ranking="peak")
        assert choose_anchors(density, of, load, ratio=0.15).tolist() == sample["anchors"]
        links = np.array(sample["clusters"]["links"])
        assert (links == links.T).all() and links.sum() > 0
        heads = sample["heads"]
        levels = np.frombuffer(base64.b64decode(heads["levels"]), np.uint8).reshape(heads["layers"], heads["heads"], -1)
        assert levels.shape[2] == 16 and (levels.max(axis=2) == 255).all()
        assert all(0 < peak < 1 for peak in heads["peaks"])

    for line in lines_of(run.folder / "density.jsonl"):
        record = watch.records[line["step"] - 1]
        mask, anchors = record.experience.response_mask, record.credit.anchors
        assert sum(line["anchors"]) == int((anchors & mask).sum())
        assert sum(line["rest"]) == int((~anchors & mask).sum())
        below = record.credit.density[mask] < line["top"] / len(line["rest"])
        assert line["anchors"][0] + line["rest"][0] == int(below.sum())


@pytest.mark.parametrize("credit", ["none", "uniform", "atrl_by_attention"])
def test_a_report_leaves_out_what_a_scheme_does_not_have(train, credit: str) -> None:
    options = ("credit=atrl", "credit.edges=attention") if credit == "atrl_by_attention" else (f"credit={credit}",)
    run = train("rollout=transformers", "trainer.evaluate_samples=0", "trainer.max_steps=1", *options)
    (sample, *_) = lines_of(run.folder / "samples.jsonl")
    assert sample["clusters"] is None  # they need response edges, or there are none
    assert (sample["heads"] is None) == (credit != "atrl_by_attention")
    assert (run.folder / "density.jsonl").is_file() == (credit == "atrl_by_attention")


@pytest.mark.parametrize("family", ["llava", "gemma3", "internvl"])
def test_pictures_without_a_grid_of_patches_are_shown_without_attention(train, tmp_path: Path, family: str) -> None:
    """Where on them a token is, isn't known. Every step is trained and recorded all the same."""
    Image.linear_gradient("L").resize((60, 30)).convert("RGB").save(tmp_path / "wide.png")
    lines = [
        {"id": f"p{number}", "problem": "What is <image>?", "answer": "x", "images": ["wide.png"]}
        for number in range(8)
    ]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "model").mkdir()
    run = train(
        "model=pretrained", f"model.path={FAMILIES[family](tmp_path / 'model')}", "rollout=transformers",
        "data=jsonl", f"data.path={tmp_path / 'problems.jsonl'}", "rollout.max_response_tokens=8",
        "trainer.evaluate_samples=0",
    )  # fmt: skip
    assert run.trained.module.steps_done == 2
    samples = lines_of(run.folder / "samples.jsonl")
    assert {sample["step"] for sample in samples} == {1, 2}
    for sample in samples:
        assert (run.folder / sample["images"][0]).is_file()
        assert sample["attention"] is sample["attended"] is sample["heads"] is None
    assert any(any(sample["anchors"]) and sample["clusters"] for sample in samples)

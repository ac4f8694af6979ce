"""The example plug-in, installed as a user would: its scheme and reward train, its benchmark scores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.integration.conftest import REPOSITORY

# Not by looking for the modules: setuptools takes that for pip at work, and vLLM can't be imported any more.
INSTALLED = {distribution.name for distribution in metadata.distributions()}
MISSING = sorted({"pip", "setuptools"} - INSTALLED)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the example is built and installed by {MISSING}: install it")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built and installed into a folder of its own, without any network."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(REPOSITORY / "examples" / "plugin", folder / "source")  # building leaves files beside it
    options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", folder / "site")
    subprocess.run([sys.executable, "-m", "pip", "install", *options, folder / "source"], check=True, timeout=300)
    return folder / "site"


def run(site: Path, script: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, REPOSITORY / script, *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_its_scheme_and_reward_train(site: Path, tmp_path: Path) -> None:
    small = ("trainer.max_steps=1", "trainer.evaluate_samples=0", "rollout.prompts_per_step=2", "rollout.group_size=4")
    chosen = ("credit=surprisal", "credit.anchor_ratio=0.2", "reward=exact_brief", "rollout=transformers", "logger=csv")
    done = run(site, "train.py", *chosen, *small, "hydra.run.dir=out", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["credit"]["scheme"] == "surprisal"
    rows = [json.loads(line) for line in (tmp_path / "out" / "rollouts.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    for row in rows:
        assert sum(row["anchors"]) == int(0.2 * len(row["tokens"]) + 0.5)
        assert row["parts"]["brevity"] == pytest.approx(min(1, max(0, 2 - len(row["response"].split()) / 30)))


def test_its_benchmark_scores_recorded_answers(site: Path, tmp_path: Path) -> None:
    golds, responses = ["3", "12", "-1", "7"], ["I count 2, no, 3.", "13 of them", "-1", "many"]
    problems = [{"id": str(n), "question": "How many?", "answer": gold} for n, gold in enumerate(golds)]
    answers = [{"id": str(n), "response": text} for n, text in enumerate(responses)]
    for name, rows in (("problems", problems), ("answers", answers)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ("predictions=answers.jsonl", "data.path=problems.jsonl")
    done = run(site, "evaluate.py", "benchmark=counting", *files, "hydra.run.dir=out", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert result["metrics"] == {"accuracy": 50.0, "close": 75.0}
    assert (result["benchmark"], result["right"], result["unparseable"]) == ("counting", 2, 1)


def test_without_it_nothing_is_known_of_its_options(tmp_path: Path) -> None:
    done = run(tmp_path, "train.py", "credit=surprisal", folder=tmp_path)
    assert done.returncode == 2 and "credit=surprisal: there is no such option of 'credit'" in done.stderr

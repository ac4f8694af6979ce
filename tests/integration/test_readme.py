"""The worked examples of docs/own.md, as they stand there; only smaller."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "own.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
SMALLER = {
    "train.py": (
        *("rollout=transformers", "logger=csv", "trainer.max_steps=1", "trainer.evaluate_samples=4"),
        *("trainer.grounding_samples=0", "rollout.prompts_per_step=2", "rollout.group_size=2"),
    ),
    "evaluate.py": ("rollout=transformers", "limit=6", "rollout.max_response_tokens=32"),
}


def commands(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def smaller(command: str) -> str:
    """The command with this interpreter, this repository's program and the options that keep it short."""
    words = command.split()
    if words[0] != "python":
        return command
    options = SMALLER.get(words[1], ())
    program = str(REPOSITORY / words[1]) if options else words[1]
    return " ".join([sys.executable, program, *words[2:], *options])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which every block of the page was written or run, in order."""
    folder, script = tmp_path_factory.mktemp("reader"), ["set -e"]
    for language, title, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if title:
            (folder / title).parent.mkdir(parents=True, exist_ok=True)
            (folder / title).write_text(text, encoding="utf-8")
        else:
            assert language == "bash", f"a block of {PAGE} is neither a file nor for the shell: {text}"
            script += [smaller(command) for command in commands(text)]
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}:{os.environ.get('PYTHONPATH', '')}"}
    result = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def rollouts(done: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (done / "outputs" / name / "rollouts.jsonl").read_text().splitlines()]


def test_own_data(done: Path) -> None:
    rows = rollouts(done, "dots")
    assert len(rows) == 4 and {row["question"] for row in rows} == {"<image>How many dots?"}
    assert all(1 <= int(row["gold"]) <= 9 for row in rows)


def test_own_model(done: Path) -> None:
    """It starts from what the run before it left."""
    assert "path: outputs/dots" in (done / "outputs" / "more" / "config.yaml").read_text()
    assert rollouts(done, "more") and (done / "outputs" / "more" / "model" / "model.safetensors").is_file()


def test_own_reward(done: Path) -> None:
    rows = rollouts(done, "near")
    assert all(row["parts"].keys() == {"near"} for row in rows)
    sys.path.insert(0, str(done / "mine"))
    from near import NearCount

    class Gold:
        answer = "4"

    found = NearCount(partial=0.3).score([r"\boxed{4}", r"\boxed{5}", r"\boxed{9}", "four"], [Gold] * 4)
    assert [(verdict.value, verdict.parsed) for verdict in found] == [(1, True), (0.3, True), (0, True), (0, False)]
    with pytest.raises(ValueError, match=r"reward\.parts\.near\.partial must be in \[0, 1\), got 2"):
        NearCount(partial=2)


def test_own_credit_scheme(done: Path) -> None:
    rows = rollouts(done, "surprise")
    for row in rows:
        assert sum(row["weights"]) / len(row["weights"]) == pytest.approx(1, abs=1e-3)
    assert any(len(set(row["weights"])) > 2 for row in rows)
    assert json.loads((done / "outputs" / "surprise" / "summary.json").read_text())["credit"]["scheme"] == "surprise"


def test_own_benchmark(done: Path) -> None:
    (found,) = (done / "outputs" / "evaluation").glob("*/evaluation.json")
    result = json.loads(found.read_text())
    assert (result["benchmark"], result["problems"], result["headline"]["name"]) == ("dots", 6, "accuracy")
    assert result["metrics"].keys() & {"dots/many", "dots/few"}

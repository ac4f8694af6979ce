"""What the command line offers before anything runs: its help, its config, and completion, without heavy imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "lightning", "vllm", "datasets", "matplotlib", "wandb", "pymetis", "numpy", "PIL"}
INSPECT = "src/atrl/inspect/__main__.py"

WATCHED = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", *{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WATCHED, str(ROOT / script), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}, cwd="/"
    )


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("train.py", ["--cfg", "job"]),
        ("train.py", ["--help"]),
        ("train.py", ["credit=atlr"]),
        ("train.py", ["trainer.max_step=3"]),
        ("evaluate.py", ["--cfg", "job"]),
        ("replay.py", ["--cfg", "job"]),
        (INSPECT, ["--cfg", "job"]),
    ],
)
def test_composing_a_config_imports_nothing_heavy(script, arguments):
    done = run(script, *arguments)
    imported = done.stderr.partition("imported: ")[2].split()
    assert "hydra" in imported and HEAVY.intersection(imported) == set()


def test_help_lists_groups_and_settings_with_what_they_are_now():
    text = run("train.py", "--help", "experiment=easy_vqa", "seed=7").stdout
    assert "credit: anchor_only, atrl, entropy," in text and "benchmark: dynamath, easy_vqa," in text
    steps = yaml.safe_load((ROOT / "experiments/easy_vqa.yaml").read_text())["trainer"]["max_steps"]
    assert "seed: 7;" in text and f"training steps: {steps}" in text
    assert len(text.splitlines()) < 60  # and not the whole config


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "replay.py", INSPECT])
def test_every_setting_that_the_help_names_exists(script):
    """Composed with a value of its own for each, none of them is refused."""
    text = run(script, "--help").stdout.partition("they are now ==")[2].partition("== More")[0]
    settings = [word.strip(",") for line in text.splitlines() for word in line[:43].split() if "=" in word]
    assert len(settings) >= 5
    values = {"FILE": "file", "FOLDER": "folder", "PATH": "folder", "N": "1", "X": "0.5", "true": "true"}
    options = {"credit": "uniform", "algorithm": "dapo", "rollout": "transformers", "reward": "math"}
    for setting in settings:
        key, _, value = setting.partition("=")
        asked = f"{key}={options.get(key) or values.get(value, value)}" if key != "experiment" else "experiment=wordy"
        done = run(script, "--cfg", "job", *(["data=jsonl"] if key == "data.path" else []), asked)
        assert done.returncode == 0, (asked, done.stderr)


def test_tab_completion_knows_groups_options_and_keys():
    def completed(line: str) -> set[str]:
        position = str(len(line))
        done = run("train.py", "-sc", "query=bash", COMP_LINE=line, COMP_POINT=position)
        return set(done.stdout.split())

    assert "credit=vppo" in completed("python train.py credit=v")
    assert {"trainer.max_steps=", "trainer.devices="} <= completed("python train.py trainer.")


def test_a_reader_that_stops_reading_is_no_error():
    command = f"{sys.executable} {ROOT / 'train.py'} --cfg job | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("algorithm:\n", "")

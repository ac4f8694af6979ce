"""Runs of the real pipeline in this process, small enough for a test."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from lightning import Callback

REPOSITORY = Path(__file__).parents[2]

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make setup installs it"
)


@dataclass
class Run:
    """A finished run: its folder, its parts and what training left in memory."""

    folder: Path
    parts: object
    trained: object


SMALL = (
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    "trainer.max_steps=2",
    "trainer.evaluate_samples=8",
    "optimizer.warmup_steps=1",
    "optimizer.micro_batch_size=16",
)


def compose_config(folder: Path, *overrides: str):
    """The training config, logging to `folder` without W&B."""
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return compose("train", overrides=["logger=csv", f"logger.csv.save_dir='{folder}'", *SMALL, *overrides])


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Run]:
    """`train("key=value", …, watch=callback)` runs the RL stage of `train.py` and returns what it left."""

    def run(*overrides: str, name: str = "run", watch: Callback | None = None) -> Run:
        from atrl import pipeline, stages

        folder = tmp_path / name
        folder.mkdir()
        config = compose_config(folder, *overrides)
        parts = pipeline.instantiate_parts(config, folder)
        pipeline.prepare_process(parts)
        data = pipeline.load_data(parts)
        loaded = parts.model.load(folder / "initial_model")
        trained = stages.reinforce(parts, data, loaded, watchers=[] if watch is None else [watch])
        return Run(folder, parts, trained)

    return run

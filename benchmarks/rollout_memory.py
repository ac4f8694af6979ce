"""Memory over the steps of a real training run with vLLM; for `rollout.py`."""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from device import overrides
from hydra import compose, initialize_config_dir
from lightning import Callback
from slope import growth

from atrl import pipeline, stages

if TYPE_CHECKING:
    from omegaconf import DictConfig


class Held(Callback):
    """Notes what torch holds of the GPU after each step; the peaks in a run's metrics grow with its responses too."""

    def __init__(self) -> None:
        self.bytes: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """0 without one."""
        self.bytes.append(torch.cuda.memory_allocated() if torch.cuda.is_available() else 0)


def composed(arguments: argparse.Namespace, folder: Path) -> DictConfig:
    """The settings of the run."""
    own = [
        "logger=csv", f"logger.csv.save_dir='{folder}'", f"model.path={arguments.model}",
        f"rollout.prompts_per_step={arguments.prompts}", f"rollout.group_size={arguments.group_size}",
        f"rollout.max_response_tokens={arguments.tokens}", f"trainer.max_steps={arguments.steps}",
        "trainer.evaluate_samples=0", f"rollout.sampler.enforce_eager={not arguments.compiled}",
        f"rollout.sampler.dtype={arguments.dtype}",
    ]  # fmt: skip
    placed = overrides("vllm", arguments.trainer, share=arguments.engine_share, threads=arguments.threads)
    with initialize_config_dir(str(Path(__file__).resolve().parents[1] / "conf"), version_base="1.3"):
        return compose("train", overrides=[*placed, *own])


def memory_over_steps(arguments: argparse.Namespace) -> dict[str, object]:
    """Train, and say how memory grew and how far the sampler was off."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        parts = pipeline.instantiate_parts(composed(arguments, folder), folder)
        pipeline.prepare_process(parts)
        held, loaded = Held(), parts.model.load(folder / "initial_model")
        stages.reinforce(parts, pipeline.load_data(parts), loaded, watchers=[held])
        with (folder / "metrics.csv").open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("memory/host")]
    return found_in(rows, held.bytes if arguments.trainer == "gpu" else None)


def found_in(rows: Sequence[Mapping[str, str]], held: Sequence[float] | None) -> dict[str, object]:
    """What a run's metrics say, and what was `held` of its GPU if it had one."""
    found = growth("memory", [float(row["memory/host"]) for row in rows]) | {
        "memory_steps": len(rows),
        "training_logprob_max_difference": max(float(row["rollout/logprob_gap_max"]) for row in rows),
    }
    if held is None:
        return found
    peak = max(int(float(row["memory/device"])) for row in rows)
    return found | growth("device", held) | {"device_peak_bytes": peak}

"""Runs of the real pipeline in this process, small enough for a test."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
from hydra import compose, initialize_config_dir
from lightning import Callback

from atrl.sweep.child import end_with_parent

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


@contextmanager
def running_server(
    model: Path | str, log: Path, *options: str, key: str = "", environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    """The URL of a real server of `model` on a free port; it and its processes end with the block, or with pytest."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "atrl.rollout.serve", str(model), "--port", str(port), *options]
    with log.open("w") as file:
        server = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment, "VLLM_API_KEY": key},
            start_new_session=True, preexec_fn=end_with_parent,
        )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(server.pid, sign)
                server.wait(timeout=20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue

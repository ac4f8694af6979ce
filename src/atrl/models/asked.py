"""In which words a checkpoint was trained to be asked, so that it is asked in the same."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

MARK_ANSWER = "Think step by step and put the final answer in \\boxed{}."
"""What models that know many ways of answering are asked where nothing else is known."""


def trained_instruction(checkpoint: str) -> str | None:
    """`model.instruction` of the run that left `checkpoint` (its folder, or `model/` in it); None where none did.

    The model that comes with atrl was trained without one.
    """
    if checkpoint == "tiny":
        return ""
    folder = Path(checkpoint).expanduser()
    run = folder.parent if folder.name == "model" else folder
    file = run / ".hydra" / "config.yaml"
    if not file.is_file():
        return None
    return OmegaConf.select(OmegaConf.load(file), "model.instruction", default=None)


def asked_as_trained(config: DictConfig) -> DictConfig:
    """`config` with each `instruction` that is null settled by its `checkpoint`.

    Of the model it becomes what the checkpoint's run appended to its questions, or nothing; of a benchmark the same, or
    `MARK_ANSWER` for a checkpoint of unknown training.
    """
    asked = None if OmegaConf.is_missing(config, "checkpoint") else trained_instruction(config.checkpoint)
    settled = config.copy()
    model, benchmarks = settled.get("model"), settled.get("benchmark") or {}
    if _is_open(model):
        model.instruction = asked or ""
    for benchmark in filter(_is_open, benchmarks.values()):
        benchmark.instruction = MARK_ANSWER if asked is None else asked
    return settled


def _is_open(node: object) -> bool:
    return isinstance(node, DictConfig) and "instruction" in node and node.instruction is None

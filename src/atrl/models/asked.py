"""In which words a checkpoint was trained to be asked, so that it is asked in the same."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

MARK_ANSWER = "Think step by step and put the final answer in \\boxed{}."
"""What models that know many ways of answering are asked, where nothing else is known."""


def trained_instruction(checkpoint: str) -> str | None:
    """`model.instruction` of the run that left `checkpoint` (its folder, or `model/` in it); None where none did.

    The model that comes with atrl was trained without one.
    """
    if checkpoint == "tiny":
        return ""
    folder = Path(checkpoint).expanduser()
    file = (folder.parent if folder.name == "model" else folder) / "config.yaml"
    settings = OmegaConf.load(file) if file.is_file() else None
    return OmegaConf.select(settings, "model.instruction") if isinstance(settings, DictConfig) else None


def asked_as_trained(config: DictConfig) -> DictConfig:
    """`config` with every `instruction` of model and benchmarks that is null settled by the checkpoint.

    That is its `checkpoint`, or the model's `path`. It becomes what the checkpoint's run appended to its questions, and
    `MARK_ANSWER` for a checkpoint of unknown training.
    """
    settled = config.copy()
    path = OmegaConf.select(settled, "checkpoint" if "checkpoint" in list(settled) else "model.path")
    known = trained_instruction(path) if path else None
    for node in (settled.get("model"), *(settled.get("benchmark") or {}).values()):
        if isinstance(node, DictConfig) and "instruction" in node and node.instruction is None:
            node.instruction = MARK_ANSWER if known is None else known
    return settled

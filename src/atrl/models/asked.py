"""In which words a checkpoint was trained to be asked, so that it is asked in the same."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

MARK_ANSWER = "Think step by step and put the final answer in \\boxed{}."
"""What models that know many ways of answering are asked, where nothing else is known."""

NOTE = "asked.json"
"""In the folder of a model that atrl wrote."""
TINY = Path(__file__).parent / "tiny"


def trained_instruction(checkpoint: str) -> str | None:
    """What `checkpoint` was trained to see at the end of a question; None where nobody wrote it down.

    A model that atrl wrote says so itself; of a run it is otherwise its `model.instruction`.

    Args:
        checkpoint: the folder of a run or of a model, "tiny", or a hub name.

    Raises:
        ValueError: if a model's note is not what atrl writes.
    """
    folder = TINY if checkpoint == "tiny" else Path(checkpoint).expanduser()
    for note in (folder / NOTE, folder / "model" / NOTE):
        if note.is_file():
            return _noted(note)
    file = run_of(folder) / "config.yaml"
    settings = OmegaConf.load(file) if file.is_file() else None
    return OmegaConf.select(settings, "model.instruction") if isinstance(settings, DictConfig) else None


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that left `checkpoint`, which is that folder or its `model`; if a run left it."""
    return checkpoint.parent if checkpoint.name == "model" else checkpoint


def note_instruction(folder: Path, instruction: str | None) -> None:
    """Write into a model's `folder` what it was trained with, if that is known."""
    if instruction is not None:
        (folder / NOTE).write_text(json.dumps({"instruction": instruction}) + "\n", encoding="utf-8")


def _noted(note: Path) -> str:
    try:
        instruction = json.loads(note.read_text(encoding="utf-8"))["instruction"]
    except (ValueError, KeyError, TypeError):
        instruction = None
    if not isinstance(instruction, str):
        raise ValueError(f'{note} must hold {{"instruction": "…"}}: mend it, or delete it and set model.instruction')
    return instruction


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

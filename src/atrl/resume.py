"""Going on with a run: which checkpoint, whether it is of this run, and what its files may keep."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from atrl.checkpoint import LAST, STATE, Checkpoint, newest_checkpoint, read_checkpoint
from atrl.settings import differences, flat, settings_of, show

if TYPE_CHECKING:
    from atrl.types import Problem


def find_checkpoint(resume: str | None, folder: Path) -> Checkpoint | None:
    """What `resume` asks for: None starts afresh, "auto" takes the newest checkpoint of `folder`, if it has one.

    Anything else is the path of a checkpoint, or of a run's folder, whose newest is taken.

    Raises:
        ValueError: if there is no checkpoint at that path.
    """
    if resume is None:
        return None
    if resume == "auto":
        return newest_checkpoint(folder / "checkpoints")
    path = Path(resume).expanduser()
    if (path / STATE).is_file():
        return read_checkpoint(path)
    found = newest_checkpoint(path / "checkpoints") or newest_checkpoint(path)
    if found is None:
        raise ValueError(
            f"resume={resume}: no checkpoint there: name a run's folder, a checkpoint (…/checkpoints/{LAST}) or auto"
        )
    return found


def check_same_run(
    checkpoint: Checkpoint, config: DictConfig, problems: Sequence[Problem], *, allow: Iterable[str] = ()
) -> None:
    """Raises ValueError, with the differences, where config or data are not those that the checkpoint was made with.

    Keys in `allow`, and the groups they name, may differ; "data_set" allows other problems. Which weights are trained
    may not: the checkpoint holds no others.
    """
    allow = tuple(allow)
    before, now = flat(checkpoint.state["config"]), flat(settings_of(config))
    if _trained(before) != _trained(now):
        raise ValueError(
            f"{checkpoint.folder} holds {_trained(before)}, and this run trains {_trained(now)}: start a new run, with "
            "model.path set to the folder of that run if it is finished"
        )
    different = differences(checkpoint.state["config"], settings_of(config), allow=allow)
    if "data_set" not in allow and checkpoint.state["data"] != fingerprint(problems):
        different.append("data_set: the training problems are others than those of the checkpoint")
    if different:
        names = ",".join(line.split(" ")[0].rstrip(":") for line in different)
        raise ValueError(
            f"{checkpoint.folder} is of a run with other settings: {'; '.join(different)}. Start a new run, or go on "
            f"with resume_allow=[{names}]"
        )


def check_same_base(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Raises ValueError where adapters were trained beside other weights than those that are loaded now.

    Only they are in the checkpoint, and `model.path` may name what has changed since, as outputs/latest.
    """
    if checkpoint.state.get("base") != settings.get("base"):
        raise ValueError(
            f"{checkpoint.folder} holds adapters of another model than model.path now names: set model.path to the "
            "folder that it had when the run began"
        )


def weights_fingerprint(folder: Path) -> str:
    """Of names, sizes, beginnings and ends of the files that hold a model's weights: reading all would take long."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = file.stat().st_size
        with file.open("rb") as content:
            begin = content.read(2**20)
            content.seek(max(0, size - 2**20))
            digest.update(f"{file.name} {size} ".encode() + begin + content.read())
    return digest.hexdigest()


def fingerprint(problems: Sequence[Problem]) -> str:
    """Of ids, questions and answers; of generated problems, which the config tells of, only their number."""
    digest = hashlib.sha256(f"{len(problems)}".encode())
    for problem in problems if isinstance(problems, list) else ():
        digest.update(json.dumps([problem.id, problem.question, problem.answer]).encode())
    return digest.hexdigest()


def keep_until(folder: Path, steps: int) -> None:
    """Cut the run's files back to what its first `steps` training steps wrote; what came after is done again."""
    _keep_lines(folder / "metrics.csv", _row_filter(steps))
    for name in ("rollouts.jsonl", "samples.jsonl", "groups.jsonl", "density.jsonl"):
        _keep_lines(folder / name, lambda line: _step_of(line) <= steps)


def _trained(settings: Mapping[str, Any]) -> str:
    if "model.lora.rank" not in settings:
        return "all weights"
    modules, rank = show(settings, "model.lora.modules"), settings["model.lora.rank"]
    return f"adapters of rank {rank} on {modules}"


def _row_filter(steps: int) -> Callable[[str], bool]:
    """Whether a line of `metrics.csv` stays: the header, and rows of steps that are counted from 0."""
    column: list[int] = []

    def keep(line: str) -> bool:
        cells = line.rstrip("\n").split(",")
        if not column:
            column.append(cells.index("step"))
            return True
        return len(cells) > column[0] and cells[column[0]].isdecimal() and int(cells[column[0]]) < steps

    return keep


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")  # a line that a killed run did not finish


def _keep_lines(path: Path, keep: Callable[[str], bool]) -> None:
    if not path.is_file():
        return
    beside = path.with_name(f".{path.name}")
    with path.open(encoding="utf-8") as before, beside.open("w", encoding="utf-8") as after:
        after.writelines(line for line in before if line.endswith("\n") and keep(line))
    beside.replace(path)

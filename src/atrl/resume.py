"""Going on with a run: which checkpoint, whether it is of this run, and what its files may keep."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from atrl.checkpoint import LAST, STATE, Checkpoint, newest_checkpoint, point_last_at, read_checkpoint
from atrl.own_code import changed_since, own_sources
from atrl.settings import differences, flat, settings_of, show

if TYPE_CHECKING:
    from atrl.types import Problem

WARM_UP_METRICS = ("loss/sft", "eval/selection_accuracy")
OF_A_POLICY = ("eval/accuracy", "eval/picture_true")
"""In the rows of `metrics.csv` that are of the policy after so many steps as they say, and not of a step."""
AT_THE_END = "eval/picture_true"
"""In those of them that a run logs once more after its last step."""
RECORDS = ("metrics.csv", "rollouts.jsonl", "checkpoints", "summary.json")
"""What a run leaves in its folder as it goes."""
LEFT = ("model", "summary.json", "report.html")
"""What it leaves when it ends."""
ABANDONED = "abandoned"
"""In `checkpoints/`, where those lie whose steps are done again."""

_SAMPLES, _SAMPLE_BYTES = 1024, 2**14
"""Of a file of weights: one of up to 16 MiB is read whole, one of 5 GB every 5 MB, a matrix of a model so large."""


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
    """Raises ValueError, with the differences, where config, data or code of one's own are not those that the
    checkpoint was made with.

    Keys in `allow`, and the groups they name, may differ; "data_set" allows other problems and "code" other code. Which
    weights are trained may not: the checkpoint holds no others.
    """
    allow = tuple(allow)
    before, now = flat(checkpoint.state["config"]), flat(settings_of(config))
    if _trained(before) != _trained(now):
        raise ValueError(
            f"{checkpoint.folder} holds {_trained(before)}, and this run trains {_trained(now)}: set model.lora as it "
            "was, or start a new run, with model.path set to the folder of that run if it is finished"
        )
    different = differences(checkpoint.state["config"], settings_of(config), allow=allow)
    if "data_set" not in allow and checkpoint.state["data"] != fingerprint(problems):
        different.append("data_set: the training problems are others than those of the checkpoint")
    changed = changed_since(checkpoint.state.get("sources", {}), own_sources(config))
    if "code" not in allow and changed:
        different.append(f"code: {', '.join(changed)} changed since the checkpoint")
    if different:
        names = ",".join(line.split(" ")[0].rstrip(":") for line in different)
        raise ValueError(
            f"{checkpoint.folder} is of a run with other settings: {'; '.join(different)}. Start a new run, or go on "
            f"with resume_allow=[{names}]"
        )


def has_same_base(checkpoint: Checkpoint, folder: Path) -> bool:
    """Whether the weights in `folder` are those that `checkpoint` needs, if any: beside its adapters, or as the
    reference of its KL term.
    """
    held = checkpoint.state.get("base")
    return held is None or held == weights_fingerprint(folder)


def check_same_base(checkpoint: Checkpoint, folder: Path) -> None:
    """Raises ValueError where `checkpoint` has adapters that were trained beside other weights than those in `folder`,
    or a KL term that compared with others.

    They are not in the checkpoint, and `model.path` may name what has changed since, as outputs/latest.
    """
    if has_same_base(checkpoint, folder):
        return
    config = checkpoint.state["config"]
    path, compares = config["model"].get("path"), (config.get("algorithm") or {}).get("kl_coefficient")
    alone = bool(config["model"].get("lora")) or not compares
    holds = "holds adapters that were trained beside" if alone else "is of a run whose KL term compared with"
    was = "" if path is None else f", model.path={path} as it was then"
    raise ValueError(
        f"{checkpoint.folder} {holds} other weights than those in {folder}: go on with the model that "
        f"the run began with{was}, or start a new run"
    )


def weights_fingerprint(folder: Path) -> str:
    """Of names, sizes and samples of the files that hold a model's weights: reading all would take long.

    The samples are all over a file. At its ends are the embedding and the vision tower, which a model with adapters
    merged has as its base has them.
    """
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        samples = min(_SAMPLES, -(-size // _SAMPLE_BYTES))
        with file.open("rb") as content:
            for index in range(samples):
                content.seek(index * max(0, size - _SAMPLE_BYTES) // max(1, samples - 1))
                digest.update(content.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def fingerprint(problems: Sequence[Problem]) -> str:
    """Of ids, questions and answers; of generated problems, which the config tells of, only their number."""
    digest = hashlib.sha256(f"{len(problems)}".encode())
    for problem in problems if isinstance(problems, list) else ():
        digest.update(json.dumps([problem.id, problem.question, problem.answer]).encode())
    return digest.hexdigest()


def check_unused(folder: Path) -> None:
    """Raises ValueError where a run lies in `folder`: records of two would be mixed, and the first's checkpoints go."""
    held = [name for name in RECORDS if (folder / name).exists()]
    if held:
        raise ValueError(
            f"{folder} holds a run already ({held[0]}): add resume=auto to go on with it, or set another hydra.run.dir"
        )


def is_finished(folder: Path, start: Checkpoint, max_steps: int) -> bool:
    """Whether a run that goes on from `start` has nothing to do: neither steps, nor what comes after the last of them.

    That is done again where a run in its own `folder` was killed before it left all of `LEFT`.
    """
    if start.step < max_steps:
        return False
    return not _is_in(start, folder) or all((folder / name).exists() for name in LEFT)


def set_aside_later(folder: Path, start: Checkpoint) -> list[str]:
    """Move the checkpoints of `folder` that come after `start`, one of them too, into `ABANDONED`; their names.

    Their steps are done again, so that "auto" must not go on from them: their records are cut.
    """
    if not _is_in(start, folder):
        return []
    root = start.folder.parent
    later = sorted(path.name for path in root.glob("step_*") if path.name > start.folder.name)
    for name in later:
        (root / ABANDONED).mkdir(exist_ok=True)
        shutil.rmtree(root / ABANDONED / name, ignore_errors=True)
        (root / name).rename(root / ABANDONED / name)
    if later:
        point_last_at(start.folder)
    return later


def keep_until(folder: Path, steps: int, *, ends_again: bool = False) -> None:
    """Cut the run's files back to what its first `steps` training steps wrote; what came after is done again.

    With `ends_again` these are all, and what was logged after the last of them goes as well.
    """
    _keep_lines(folder / "metrics.csv", _row_filter(steps, ends_again))
    for name in ("rollouts.jsonl", "samples.jsonl", "groups.jsonl", "density.jsonl"):
        _keep_lines(folder / name, lambda line: _step_of(line) <= steps)


def _is_in(start: Checkpoint, folder: Path) -> bool:
    return start.folder.parent == (folder / "checkpoints").resolve()


def _trained(settings: Mapping[str, Any]) -> str:
    if "model.lora.rank" not in settings:
        return "all weights"
    modules, rank = show(settings, "model.lora.modules"), settings["model.lora.rank"]
    return f"adapters of rank {rank} on {modules}"


def _row_filter(steps: int, ends_again: bool) -> Callable[[str], bool]:
    """Whether a line of `metrics.csv` stays: the header, rows of steps, which are counted from 0, and accuracies of the
    policy after no more than `steps`.

    A warm-up before them counts its own steps in the same column, and is over once there is a checkpoint.
    """
    columns: list[str] = []

    def keep(line: str) -> bool:
        cells = line.rstrip("\r\n").split(",")
        if not columns:
            columns.extend(cells)
            return True
        row = dict(zip(columns, cells, strict=False))  # a killed run may have left less of its last row
        if steps and any(row.get(name) for name in WARM_UP_METRICS):
            return True
        if not row.get("step", "").isdecimal():
            return False
        step, of_a_policy = int(row["step"]), any(row.get(name) for name in OF_A_POLICY)
        if step > steps or (step == steps and not (steps and of_a_policy)):
            return False
        return not (ends_again and step == steps and row.get(AT_THE_END))

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
    # newline: the ends of lines stay as well, which csv writes in its own way.
    with path.open(encoding="utf-8", newline="\n") as before, beside.open("w", encoding="utf-8", newline="\n") as after:
        after.writelines(line for line in before if line.endswith("\n") and keep(line))
    beside.replace(path)

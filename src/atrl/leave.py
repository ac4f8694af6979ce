"""What a run leaves: model, summary, report, and the last words in the terminal."""

from __future__ import annotations

import json
import resource
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrl.export.write import write_adapter, write_model
from atrl.launch import main_process
from atrl.tracking import KeepsFiles
from atrl.types import Status
from atrl.versions import git_revision, versions

_SCORED_BY = {"data": "geometry", "reward": "exact", "rollout": "vllm"}
"""What `evaluate.py` takes of groups unless it is told otherwise."""
_OF_THE_TASK = ("data.", "reward.", "rollout.max_", "rollout.video_")
"""Settings that a score depends on as well."""
_OF_THE_RUN = ("credit", "seed", "hydra.", "resume")
"""What another run has of its own."""

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from atrl.evaluation.score import Score
    from atrl.models.load import LoadedModel
    from atrl.pipeline import Data, Parts
    from atrl.stages import TrainingOutcome, WarmUpOutcome


def finish_run(
    parts: Parts,
    data: Data,
    loaded: LoadedModel,
    warmed_up: WarmUpOutcome | None,
    trained: TrainingOutcome | None,
) -> None:
    """Export the model, write `summary.json` and the report, move `latest`, and say what came out."""
    from atrl.models.lora import adapter_state
    from atrl.report.build import write_report
    from atrl.weight_sync import whole_state

    parts.reward.close()
    # All ranks hold a part of a sharded model.
    state, adapter = whole_state(loaded.model), adapter_state(loaded.model)
    if not main_process():
        return
    write_model(loaded.model, loaded.processor, state, parts.folder / "model", instruction=parts.model.instruction)
    if adapter:
        write_adapter(loaded.model, adapter, parts.folder / "adapter")
    summary = summarise(parts, warmed_up, trained)
    (parts.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    report = write_report(parts.folder)
    tell_loggers(parts, summary)
    move_latest(parts.folder)
    print("\n".join(closing_words(parts, data, summary, warmed_up, trained, report)))


def tell_loggers(parts: Parts, summary: dict[str, Any]) -> None:
    """Give the summary, and the model where it is asked for, to the loggers that keep such things."""
    for logger in parts.logger:
        if isinstance(logger, KeepsFiles):
            logger.log_summary(summary)
            if logger.log_model:
                logger.log_folder(parts.folder / "model", kind="model")


def summarise(parts: Parts, warmed_up: WarmUpOutcome | None, trained: TrainingOutcome | None) -> dict[str, Any]:
    """The content of `summary.json`."""
    import torch

    seconds = trained.module.timer.total if trained else {}
    scored = trained or warmed_up
    greedy = trained.greedy if trained else (None, None)
    credit: dict[str, Any] = dict.fromkeys(
        ("anchor_ratio", "num_clusters", "anchor_fraction", "anchor_recall"), None
    ) | {"scheme": "none"}
    if trained and trained.credit is not None:
        credit |= trained.credit.summary()
    statuses = trained.record.statuses if trained else {}
    record = trained.record if trained else None
    return {
        "experiment": parts.run.experiment,
        "seed": parts.run.seed,
        "steps": trained.module.steps_done if trained else parts.sft.steps,
        "device": parts.trainer.accelerator if not torch.cuda.is_available() else torch.cuda.get_device_name(),
        "versions": versions(),
        "git_revision": git_revision(Path(__file__).parent),
        "accuracy": accuracies(scored.before if scored else None, scored.after if scored else None)
        | {"greedy": accuracies(*greedy) if any(greedy) else None},
        "seconds": {"total": time.time() - parts.started, **seconds},
        "tokens": {
            "generated": record.generated_tokens if record else 0,
            "trained": record.trained_tokens if record else 0,
        },
        "peak_memory_bytes": {
            "host": peak_host_bytes(),
            "device": peak_device_bytes(trained.module.timer.device_peak if trained else 0),
        },
        "credit": credit | {"overhead_fraction": credit_overhead(seconds, trained)},
        "rollout": {
            "engine": parts.rollout.sampler.name,
            "dropped_prompts": len(trained.dropped) if trained else 0,
        },
        "rewards": {status.value: statuses.get(status, 0) for status in Status},
    }


def accuracies(before: Score | None, after: Score | None) -> dict[str, Any]:
    """What the summary says of held-out accuracy; how it changed by problem where that is known."""
    from atrl.evaluation.paired import paired_change

    return {
        "before": before and before.accuracy,
        "after": after and after.accuracy,
        "before_ci95": before and list(before.ci95),
        "after_ci95": after and list(after.ci95),
        "samples": after and after.samples,
        "paired": paired_change(before, after) if before and after else None,
    }


def credit_overhead(seconds: dict[str, float], trained: TrainingOutcome | None) -> float | None:
    """Extra time that credit took, as a share of the training steps without it; None without a credit scheme.

    A scoring pass is credit's where nothing else needs it. The backward pass of an auxiliary loss is the update's.
    """
    if trained is None or trained.credit is None:
        return None
    rest = sum(seconds[name] for name in ("rollout", "reward", "score", "update", "sync"))
    return seconds["credit"] / rest if rest > 0 else None


def peak_host_bytes() -> int:
    """The largest resident size that this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_bytes(seen: int) -> int | None:
    """The most memory that torch ever held on the GPU, or None without one.

    `seen` is the most that the timer saw, which sets torch's own count back at every phase.
    """
    import torch

    return max(seen, torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None


def move_latest(folder: Path) -> None:
    """Point `outputs/latest` at a finished run; the old link stays until the new one takes its place."""
    root = Path("outputs")
    root.mkdir(exist_ok=True)
    beside = root / f".latest_{time.time_ns()}"
    beside.symlink_to(folder.resolve(), target_is_directory=True)
    beside.replace(root / "latest")


def closing_words(
    parts: Parts,
    data: Data,
    summary: dict[str, Any],
    warmed_up: WarmUpOutcome | None,
    trained: TrainingOutcome | None,
    report: Path,
) -> list[str]:
    """What the terminal shows at the end."""
    lines = [""]
    if warmed_up is not None:
        best = max(warmed_up.history, key=lambda entry: entry[1])
        lines.append(f"warm-up: selection accuracy {best[1]:.3f} at step {best[0]}, in {warmed_up.seconds:.0f} s")
    accuracy = summary["accuracy"]
    if accuracy["before"] is not None:
        lines += [
            f"sampled accuracy on {accuracy['samples']} held-out problems (95 % interval):",
            f"  before  {_with_interval(accuracy['before'], accuracy['before_ci95'])}",
            f"  after   {_with_interval(accuracy['after'], accuracy['after_ci95'])}",
        ]
    if accuracy["greedy"] is not None:
        lines.append(f"  greedy  {_change(accuracy['greedy'])}")
    if trained is not None and trained.grounding is not None:
        lines.append(picture_line(trained.grounding))
    if data.baseline is not None:
        lines.append(f"  blind   {data.baseline['accuracy']:.3f}  ({data.baseline['description']})")
    if trained is not None:
        counts = ", ".join(f"{count} {status}" for status, count in summary["rewards"].items())
        lines.append(f"rollouts: {counts}")
        if trained.dropped:
            lines.append(
                f"{len(trained.dropped)} problems were left out, longer than rollout.max_prompt_tokens="
                f"{parts.rollout.max_prompt_tokens}: {', '.join(trained.dropped[:3])}"
                + (" …" if len(trained.dropped) > 3 else "")
            )
    folder = _shown(parts.folder)
    return [
        *lines,
        f"{summary['steps']} steps in {summary['seconds']['total']:.0f} s, "
        f"peak host memory {summary['peak_memory_bytes']['host'] / 2**30:.1f} GiB",
        f"report: {_shown(report)}",
        "",
        "next:",
        *(f"  python {command}" for command in next_commands(str(folder), *_composed())),
    ]


def next_commands(folder: str, overrides: Sequence[str], choices: Mapping[str, str]) -> list[str]:
    """What to do with a run in `folder`: score it on problems of its own, and run it again with other credit.

    Args:
        overrides: of the run's command.
        choices: what it took of each group, experiments' choices included.
    """
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    task = [f"{group}={choices[group]}" for group, usual in _SCORED_BY.items() if choices.get(group, usual) != usual]
    task += [text for text, key in zip(overrides, keys, strict=True) if key.startswith(_OF_THE_TASK)]
    same = [text for text, key in zip(overrides, keys, strict=True) if not key.startswith(_OF_THE_RUN)]
    return [
        shlex.join(["evaluate.py", f"checkpoint={folder}", *task]),
        shlex.join(["train.py", *same, "credit=uniform"]),
        shlex.join(["train.py", *same, "credit.anchor_ratio=0.3", "seed=1"]),
    ]


def _composed() -> tuple[list[str], dict[str, str]]:
    """Overrides and choices of the program's command; none where something else called."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return [], {}
    composed = HydraConfig.get()
    return list(composed.overrides.task), dict(composed.runtime.choices)


def picture_line(grounding: dict[str, Score]) -> str:
    """What the policy owes to its pictures, in one line of the closing words."""
    true, blank, swapped = (grounding[name].accuracy for name in ("true", "blank", "swapped"))
    which = f"(after, {grounding['true'].samples} of these)"
    return f"  picture {true:.3f} with it, {blank:.3f} blanked, {swapped:.3f} with another's  {which}"


def _with_interval(value: float, interval: list[float]) -> str:
    return f"{value:.3f}  [{interval[0]:.3f}, {interval[1]:.3f}]"


def _change(accuracy: dict[str, Any]) -> str:
    """An accuracy before and after; the former is missing where a run that goes on had not measured it."""
    before, after = (
        _with_interval(accuracy[name], accuracy[f"{name}_ci95"]) if accuracy[name] is not None else "–"
        for name in ("before", "after")
    )
    return f"{before}  →  {after}"


def _shown(path: Path) -> Path:
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path

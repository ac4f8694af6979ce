"""One evaluation: a checkpoint, a test split, greedy accuracy, avg@k and what is left without the pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from atrl.benchmarks.generate import pixel_limits
from atrl.config import check_config, read_section
from atrl.evaluation.finished import MODES
from atrl.evaluation.grounding import Controls, build_controls, check_swap, sides_in_words, swapped
from atrl.evaluation.measured import held_out_stamp
from atrl.evaluation.score import Score, held_out_sampling, on_problems, score
from atrl.evaluation.settings import EvaluateSettings
from atrl.evaluation.trained_on import check_problems
from atrl.models.asked import asked_as_trained
from atrl.preflight import check_videos_taken, within_positions


def evaluate(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Score `config.checkpoint`, write `evaluation.json` and `responses.jsonl` into `folder`, print a table.

    If the checkpoint is a run's folder, it gets a copy of `evaluation.json`.

    Raises:
        ValueError: if the config, the data or the checkpoint can't be used; before any model loads.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate

    if HydraConfig.initialized():
        check_problems(config.checkpoint, config.data, HydraConfig.get().overrides.task)
    config = asked_as_trained(config)
    check_config(config, sections={"": EvaluateSettings})
    settings = read_section(config, EvaluateSettings)
    source, model = instantiate(config.data), instantiate(config.model)
    rollout, reward = instantiate(config.rollout), instantiate(config.reward)
    model.check()
    rollout = within_positions(rollout, model)
    rollout.sampler.check(model.model_type())
    problems = list(source.load("test")[: settings.limit])
    check_videos_taken(problems, model.model_type(), rollout.sampler)
    reward.check(problems)
    compared = problems[: settings.grounding_problems]
    if settings.grounding:
        swap = swapped(compared, settings.seed)
        check_swap(swap, among=f"{len(compared)} problems", raised="limit or grounding_problems")
    stamp = held_out_stamp(
        problems, reward, samples=settings.samples, instruction=model.instruction or "", rollout=rollout
    )
    scores, controls, dropped, pixels = _answer(settings, model, rollout, reward, problems, folder)
    result = {
        "checkpoint": settings.checkpoint,
        "data": source.name,
        "seed": settings.seed,
        "problems": len(problems) - len(dropped),
        "dropped_prompts": len(dropped),
        "engine": rollout.sampler.name,
        **_figures(scores, controls),
        "blind": source.baseline(),
        "stamp": stamp | pixels,
    }
    text = json.dumps(result, indent=2) + "\n"
    (folder / "evaluation.json").write_text(text, encoding="utf-8")
    _copy_to_run(folder / "evaluation.json", settings.checkpoint)
    _write_responses(folder / "responses.jsonl", scores)
    print("\n".join(_table(result, scores, folder, grounding=settings.grounding is not False)))
    return result


def _copy_to_run(result: Path, checkpoint: str) -> None:
    run = Path(checkpoint).expanduser()
    if (run / "summary.json").is_file():
        shutil.copy(result, run / result.name)


def _answer(
    settings, model, rollout, reward, problems, folder: Path
) -> tuple[dict[str, Score], Controls | None, list[str], dict[str, Any]]:
    import torch

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    loaded = model.load(folder)
    builder = rollout.prompt_builder(loaded, model.instruction)
    built = builder.build_held_out(problems, "test")
    controls = None
    if settings.grounding is not False:
        controls = build_controls(built.prompts[: settings.grounding_problems], builder, seed=settings.seed)
        controls = controls if controls.true else None
    sampler = rollout.watched_sampler(folder, lambda: "nothing was scored")
    sampler.start(rollout.handle(loaded, problems))
    try:
        greedy = held_out_sampling(rollout.sampling, samples=1, greedy=True)
        draw = {"greedy": (built.prompts, greedy)}
        if settings.samples:
            draw["sampled"] = (built.prompts, held_out_sampling(rollout.sampling, samples=settings.samples))
        if controls is not None:
            draw |= {"blank": (controls.blank, greedy), "swapped": (controls.swapped, greedy)}
        scores = {
            name: score(sampler, prompts, reward, sampling, seed=f"{settings.seed}/{name}")
            for name, (prompts, sampling) in draw.items()
        }
    finally:
        sampler.close()
        reward.close()
    return scores, controls, built.dropped, pixel_limits(builder.processor.image_processor)


def _figures(scores: dict[str, Score], controls: Controls | None) -> dict[str, Any]:
    """What is left of the scores in `evaluation.json`."""
    found = {name: _as_json(value) for name, value in scores.items() if name in MODES}
    return found if controls is None else found | {"grounding": _grounding(controls, scores)}


def _grounding(controls: Controls, scores: dict[str, Score]) -> dict[str, Any]:
    """Greedy accuracies of the same problems; "true" is not that of "greedy" where some have no partner."""
    true = on_problems(scores["greedy"], {prompt.problem.id for prompt in controls.true})
    return {
        "true": true.in_short(),
        "blank": scores["blank"].in_short(),
        "swapped": scores["swapped"].in_short(),
        "left_out": controls.left_out,
        "same_answer": controls.same_answer,
    }


def _grounding_lines(found: dict[str, Any]) -> list[str]:
    left_out = f", {found['left_out']} left out for want of a partner" if found["left_out"] else ""
    lines = [f"  and without the right pictures, greedily on {found['true']['samples']} of these{left_out}:"]
    for name, what in sides_in_words(found["same_answer"]).items():
        lines.append(f"{_line(name, found[name]['accuracy'], found[name]['ci95'])}  {what}")
    return lines


def _line(label: str, accuracy: float, ci95: Sequence[float]) -> str:
    return f"  {label:8} {accuracy:.3f}  [{ci95[0]:.3f}, {ci95[1]:.3f}]"


def _as_json(value: Score) -> dict[str, Any]:
    return {
        "accuracy": value.accuracy,
        "ci95": list(value.ci95),
        "samples_per_problem": len(value.groups[0].rollouts),
        "statuses": value.statuses,
    }


def _write_responses(path: Path, scores: dict[str, Score]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for name, value in scores.items():
            for group, rewards in zip(value.groups, value.rewards, strict=True):
                for text, reward in zip(group.texts, rewards, strict=True):
                    problem = group.prompt.problem
                    row = {"id": problem.id, "mode": name, "response": text, "gold": problem.answer}
                    file.write(json.dumps(row | {"status": reward.status.value}, ensure_ascii=False) + "\n")


def _table(result: dict[str, Any], scores: dict[str, Score], folder: Path, *, grounding: bool) -> list[str]:
    lines = [f"{result['checkpoint']} on {result['problems']} {result['data']} problems"]
    for name in (name for name in MODES if name in scores):
        value = scores[name]
        label = f"avg@{result[name]['samples_per_problem']}" if name == "sampled" else name
        counts = ", ".join(f"{count} {status}" for status, count in value.statuses.items())
        lines.append(f"{_line(label, value.accuracy, value.ci95)}  {counts}")
    if "grounding" in result:
        lines += _grounding_lines(result["grounding"])
    elif grounding:
        lines.append("  grounding: not measured, because no two of the problems have different pictures")
    if result["blind"] is not None:
        lines.append(f"  {'blind':8} {result['blind']['accuracy']:.3f}  ({result['blind']['description']})")
    if result["dropped_prompts"]:
        lines.append(f"  {result['dropped_prompts']} prompts were longer than rollout.max_prompt_tokens and left out")
    return [*lines, f"written to {folder}"]

"""`benchmark=NAME`: answers that a file holds, or that a checkpoint gives, scored by the benchmark's rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from atrl.benchmarks.answers import digest, read_answers
from atrl.benchmarks.base import Answer, Benchmark, Item, check_gold, checksum
from atrl.benchmarks.generate import Session
from atrl.benchmarks.grounding import ControlAnswers, grounding_lines, grounding_of, on_items
from atrl.benchmarks.result import make_stamp, summarise, table, write_result
from atrl.benchmarks.rewarded import RewardedBenchmark
from atrl.benchmarks.scoring import Record, RecordFile, score_answers, scorer_for
from atrl.benchmarks.source import rows_of
from atrl.config import check_config, read_section
from atrl.data.base import uniform_hash
from atrl.evaluation.settings import EvaluateSettings
from atrl.models.asked import asked_as_trained

if TYPE_CHECKING:
    from atrl.benchmarks.judge import Judge
    from atrl.data.tables import Table


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One benchmark, its problems and where its result goes."""

    benchmark: Benchmark
    table: Table
    items: list[Item]
    subset: str
    folder: Path


def score_recorded(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Score `config.predictions`; no model is loaded.

    Raises:
        ValueError: if the config, the data or the answers can't be used.
    """
    from hydra.utils import instantiate

    config = without(config, "model", "rollout")
    settings = _settings(config)
    if settings.grounding:
        raise ValueError("grounding=true needs a checkpoint to ask again, and predictions are recorded: leave it out")
    benchmarks = [instantiate(node) for node in config.benchmark.values()]
    if len(benchmarks) != 1:
        raise ValueError(f"predictions are of one benchmark, got {len(benchmarks)}: score one after the other")
    task = _task(benchmarks[0], instantiate(config.data), settings, folder)
    judge = instantiate(config.judge) if config.get("judge") else None
    recorded = read_answers(
        Path(settings.predictions).expanduser(),
        [item.id for item in task.items],
        extract_again=settings.extract_again,
        missing=settings.missing,
    )
    unanswered = set(recorded.unanswered)
    items = [item for item in task.items if item.id not in unanswered]
    subset = task.subset if not unanswered else f"{len(items)} answered of {task.subset}"
    stamp = make_stamp(task.benchmark, items, subset=subset, judge=judge, extract_again=settings.extract_again)
    result, _ = _score(task, items, recorded.answers, stamp, judge, settings)
    _finish(task, result, judge)
    if recorded.left_out:
        print(f"  {recorded.left_out} answers are to problems that the data does not hold, and were left out")
    return result


def score_checkpoint(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Let `config.checkpoint` answer one or several benchmarks, and score its answers.

    Returns:
        The result of the only benchmark, or of each by its name.

    Raises:
        ValueError: if the config, the data or the checkpoint can't be used; before any model loads.
    """
    from hydra.utils import instantiate

    config = asked_as_trained(config)
    settings = _settings(config)
    source = instantiate(config.data)
    benchmarks = [instantiate(node) for node in config.benchmark.values()]
    if len(benchmarks) > 1 and getattr(source, "path", None):
        raise ValueError("data.path is of one benchmark: leave it out, or score one benchmark after the other")
    folders = {b.name: folder if len(benchmarks) == 1 else folder / b.name for b in benchmarks}
    tasks = [_task(benchmark, source, settings, folders[benchmark.name]) for benchmark in benchmarks]
    judge = instantiate(config.judge) if config.get("judge") else None
    session = Session(settings, instantiate(config.model), instantiate(config.rollout), folder)
    session.check([(task.benchmark, task.table, task.items) for task in tasks])
    with session:
        answered = [
            (
                session.answer(task.benchmark, task.table, task.items, task.folder),
                session.answer_controls(task.benchmark, task.folder),
            )
            for task in tasks
        ]
    results = {}
    for task, (answers, controls) in zip(tasks, answered, strict=True):
        stamp = partial(
            make_stamp,
            task.benchmark,
            judge=judge,
            decoding=session.decoding,
            pixels=session.pixels,
            frames=session.frames if task.benchmark.has_videos else None,
            digests=session.digests[task.benchmark.name],
        )
        result, records = _score(task, task.items, answers, stamp(task.items, subset=task.subset), judge, settings)
        if controls is not None:
            result["grounding"] = _score_controls(task, controls, records, stamp, judge, settings)
        results[task.benchmark.name] = _finish(task, result, judge)
    return next(iter(results.values())) if len(results) == 1 else results


def without(config: DictConfig, *groups: str) -> DictConfig:
    """`config` without what scoring recorded answers has no use for; a checkpoint need not be named."""
    kept = OmegaConf.masked_copy(config, [str(key) for key in config if key not in (*groups, "hydra", "checkpoint")])
    OmegaConf.set_struct(kept, False)
    kept.checkpoint = ""
    return kept


def _settings(config: DictConfig) -> EvaluateSettings:
    check_config(config, sections={"": EvaluateSettings})
    return read_section(config, EvaluateSettings)


def _task(benchmark: Benchmark, source: Any, settings: EvaluateSettings, folder: Path) -> Task:
    rows = rows_of(source, benchmark)
    everything = benchmark.items(rows)
    check_gold(benchmark, everything)
    items = limited(benchmark, everything, settings.limit, seed=settings.seed)
    if isinstance(benchmark, RewardedBenchmark):
        benchmark.check(items)
    subset = f"all {len(items)}"
    if len(items) < len(everything):
        subset = f"{len(items)} of {len(everything)}, seed {settings.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    return Task(benchmark, rows, items, subset, folder)


def limited(benchmark: Benchmark, items: Sequence[Item], limit: int | None, *, seed: int) -> list[Item]:
    """At most `limit` items in their old order, but whole units, and at least one of these."""
    if limit is None or limit >= len(items):
        return list(items)
    units: dict[str, list[Item]] = {}
    for item in items:
        units.setdefault(benchmark.unit(item), []).append(item)
    chosen: set[str] = set()
    for unit in sorted(units, key=lambda name: uniform_hash(f"limit/{name}", seed)):
        if chosen and len(chosen) + len(units[unit]) > limit:
            break
        chosen |= {item.id for item in units[unit]}
    return [item for item in items if item.id in chosen]


def _why_none(judge: Judge) -> str:
    if judge.failure is None:
        said = repr((judge.last_reply or "")[:60])
        return f"because its replies hold no verdict, one being {said}: take a judge.model that does what it is asked"
    return (
        f"at last because of {judge.failure}: check that judge.url and judge.model are right, and that "
        "judge.key_variable names a variable with a valid key"
    )


def _score(
    task: Task,
    items: Sequence[Item],
    answers: Sequence[Answer],
    stamp: Mapping[str, Any],
    judge: Judge | None,
    settings: EvaluateSettings,
) -> tuple[dict[str, Any], list[Record]]:
    """The result on `items`, and the verdicts behind it, which go to `records.jsonl` in the task's folder."""
    job = {"benchmark": task.benchmark.name, "stamp": dict(stamp), "answers": digest(answers), "data": checksum(items)}
    scorer = scorer_for(task.benchmark, judge, workers=settings.threads)
    try:
        file = RecordFile(task.folder, job)
        known = {item.id: item for item in items}
        label = f"scoring {task.benchmark.name}"
        records = score_answers(scorer, known, answers, file, label=label, unit=task.benchmark.unit)
    finally:
        scorer.close()
    if judge is not None and all(record.scored is None for record in records):
        raise ValueError(f"judge: none of {len(records)} answers could be judged, {_why_none(judge)}")
    return summarise(task.benchmark, items, records, stamp, seed=settings.seed), records


def _score_controls(
    task: Task,
    controls: ControlAnswers,
    records: Sequence[Record],
    stamp: Callable[..., dict[str, Any]],
    judge: Judge | None,
    settings: EvaluateSettings,
) -> dict[str, Any]:
    """What `evaluation.json` says of grounding; each control leaves one of its own in the folder of its name."""
    items, true = on_items(controls, task.items, records)
    subset = task.subset if len(items) == len(task.items) else f"{len(items)} with a partner of {task.subset}"
    results = {"true": summarise(task.benchmark, items, true, stamp(items, subset=subset), seed=settings.seed)}
    for name, answers in controls.answers.items():
        shown = replace(task, folder=task.folder / name)
        results[name], _ = _score(shown, items, answers, stamp(items, subset=subset, pictures=name), judge, settings)
        _write(shown, results[name])
    return grounding_of(results, controls)


def _finish(task: Task, result: dict[str, Any], judge: Judge | None) -> dict[str, Any]:
    """Write `result` and print it."""
    if judge is not None:
        result["judge"] = judge.usage()
    _write(task, result)
    more = grounding_lines(result["grounding"]) if "grounding" in result else []
    print("\n".join([*table(result), *more, f"  written to {task.folder}"]))
    return result


def _write(task: Task, result: Mapping[str, Any]) -> None:
    write_result(task.folder, json.loads(json.dumps(result, default=str)))

"""What an evaluation leaves: figures, intervals, counts, and the stamp that says what they may be compared with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrl.benchmarks.base import Benchmark, Item, checksum
from atrl.benchmarks.figures import bootstrap, point_values
from atrl.benchmarks.judge import Judge, Judged, prompt_hash
from atrl.evaluation.repeated import repeated_figures

if TYPE_CHECKING:
    from atrl.benchmarks.scoring import Record

RULES = "rules"
"""The judge's name where no model judged."""
_NOT_OPTIONS = ("hub", "config", "split", "columns", "reward")
_SHOWN = 12


def make_stamp(
    benchmark: Benchmark,
    items: Sequence[Item],
    *,
    subset: str,
    judge: Judge | None = None,
    decoding: Mapping[str, Any] | None = None,
    pixels: Mapping[str, Any] | None = None,
    frames: int | str | None = None,
    extract_again: bool | None = None,
    pictures: str | None = None,
    digests: Mapping[str, Sequence[bytes]] | None = None,
) -> dict[str, Any]:
    """All that must agree before two results may stand in one table.

    Args:
        subset: which of the benchmark's problems were answered.
        decoding: how the answers were sampled; None where they were recorded and nobody knows.
        pixels: `min_pixels` and `max_pixels` of a picture; None likewise.
        frames: that were shown of a video; None likewise, and without videos.
        extract_again: of recorded answers whether extractions were ignored; None of others.
        pictures: "blank" or "swapped"; None where problems are shown with their own.
        digests: by problem, of the content of its own pictures and videos; None of recorded answers.
    """
    asked = decoding is not None
    options = {
        name.name: getattr(benchmark, name.name)
        for name in dataclasses.fields(benchmark)
        if name.name not in _NOT_OPTIONS
    }
    in_order = sorted(items, key=lambda item: item.id)  # as for the checksum: the order of the rows is nobody's choice
    prompts = hashlib.sha256("\n".join(map(benchmark.prompt, in_order)).encode("utf-8", "replace"))
    return {
        "judge": RULES if judge is None else judge.name,
        "judge_prompt_sha256": prompt_hash(benchmark) if judge and isinstance(benchmark, Judged) else None,
        "prompt_sha256": prompts.hexdigest() if asked else None,
        "decoding": dict(decoding) if decoding is not None else None,
        "min_pixels": (pixels or {}).get("min_pixels"),
        "max_pixels": (pixels or {}).get("max_pixels"),
        "frames": frames,
        "subset": subset,
        "data_sha256": checksum(items),
        "pictures_sha256": None if digests is None else _pictures(digests, in_order),
        "options": options,
        **_reward(benchmark),
        "extract_again": extract_again,
        "pictures": pictures,
    }


def _pictures(digests: Mapping[str, Sequence[bytes]], items: Sequence[Item]) -> str:
    """SHA-256 of all that is shown, and to which problem."""
    listed = [[item.id, *(digest.hex() for digest in digests[item.id])] for item in items]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _reward(benchmark: Benchmark) -> dict[str, Any]:
    """The name of the reward's answer part, and its rule; None of a benchmark that has its own."""
    reward = getattr(benchmark, "reward", None)
    if reward is None:
        return {"reward": None, "reward_rule": None}
    return {"reward": reward.answer_part, "reward_rule": reward.parts[reward.answer_part].rule()}


def summarise(
    benchmark: Benchmark, items: Sequence[Item], records: Sequence[Record], stamp: Mapping[str, Any], *, seed: int
) -> dict[str, Any]:
    """The content of `evaluation.json`: figures in per cent, with 95 % bootstrap intervals over units."""
    from atrl.benchmarks.metric import BenchmarkMetric

    judged = [record for record in records if record.scored is not None]
    metric = BenchmarkMetric(benchmark, items)
    metric.update((record.id, record.scored) for record in judged)
    figures, units = metric.figures()
    values, intervals = point_values(figures, units.count), bootstrap(figures, units.count, seed=seed)
    return {
        "benchmark": benchmark.name,
        "problems": len({record.id for record in records}),
        "samples": len(records),
        "headline": {
            "name": benchmark.headline,
            "value": _per_cent(values[benchmark.headline]),
            "ci95": [_per_cent(end) for end in intervals[benchmark.headline]],
        },
        "metrics": {name: _per_cent(value) for name, value in values.items() if not math.isnan(value)},
        "intervals": {
            name: [_per_cent(end) for end in interval]
            for name, interval in intervals.items()
            if not math.isnan(values[name])
        },
        "right": sum(record.scored.score == 1 for record in judged),
        "unparseable": sum(not record.scored.parsed for record in judged),
        "unjudged": len(records) - len(judged),
        **_repeated(judged),
        "stamp": dict(stamp),
    }


def _repeated(records: Sequence[Record]) -> dict[str, Any]:
    by_problem: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_problem[record.id].append(record)
    if min(map(len, by_problem.values())) < 2:
        return {}
    rows = list(by_problem.values())
    figures = repeated_figures(
        [[record.scored.prediction for record in row] for row in rows],
        [[record.scored.score for record in row] for row in rows],
    )
    return {"repeated": {name: _per_cent(value) for name, value in figures.items()}}


def _per_cent(value: float) -> float | None:
    return None if math.isnan(value) else 100.0 * value


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write `evaluation.json`."""
    (folder / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def table(result: Mapping[str, Any]) -> list[str]:
    """The result in lines: the headline (a dash where it counts nothing), other figures (of many the first), counts."""
    headline = result["headline"]
    figure = "–"
    if headline["value"] is not None:
        low, high = headline["ci95"]
        figure = f"{headline['value']:.2f} %  [{low:.2f}, {high:.2f}]"
    lines = [f"{result['benchmark']}: {headline['name']} {figure}  on {result['problems']} problems"]
    others = {name: value for name, value in result["metrics"].items() if name != result["headline"]["name"]}
    for name, value in list(others.items())[:_SHOWN]:
        low, high = result["intervals"][name]
        lines.append(f"  {name:32} {value:6.2f}  [{low:.2f}, {high:.2f}]")
    if len(others) > _SHOWN:
        lines.append(f"  … and {len(others) - _SHOWN} more figures in evaluation.json")
    lines += [f"  {name:32} {value:6.2f}" for name, value in result.get("repeated", {}).items()]
    counts = f"  {result['right']} right of {result['samples']}, {result['unparseable']} unparseable"
    unjudged = f", {result['unjudged']} without a verdict (left out)" if result["unjudged"] else ""
    return [*lines, counts + unjudged, f"  judge: {result['stamp']['judge']}"]

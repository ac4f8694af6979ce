"""How long the scoring of recorded answers takes: 10,000 and more of real models, from the raw responses.

    python benchmarks/scoring.py [--recorded ../shared/data/recorded_outputs] [--answers 10000] [--workers 2]

Answers of MathVista (2,000), MathVision (608 whose problems are here) and MMMU (900) are repeated as further samples
until there are enough; nothing is remembered between repetitions, so each costs what it costs alone. Seconds are those
of `score_answers`, from the start of the worker processes until `records.jsonl` is complete, and of `summarise`, which
draws the intervals. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from atrl.benchmarks.base import Answer, Benchmark, Item
from atrl.benchmarks.mathvision import MathVision
from atrl.benchmarks.mathvista import MathVista
from atrl.benchmarks.mmmu import MMMU
from atrl.benchmarks.result import make_stamp, summarise
from atrl.benchmarks.scoring import RecordFile, score_answers, scorer_for
from atrl.data.tables import read_file

RECORDED = Path(__file__).parents[2] / "shared" / "data" / "recorded_outputs"
Recorded = tuple[list[Item], list[tuple[str, str]]]
"""Problems, and pairs of a problem's id and a response."""


def _mathvista(rule: Benchmark, folder: Path) -> Recorded:
    files = sorted(folder.glob("output_*.json"))
    tables = [read_file(path, "recorded", (), name_column="pid") for path in files]
    given = [(row.values["pid"], row.values["response"]) for table in tables for row in table.rows]
    return rule.items(tables[0]), given


def _mathvision(rule: Benchmark, folder: Path) -> Recorded:
    items = rule.items(read_file(folder / "testmini.jsonl", "recorded", ()))
    known = {item.id for item in items}
    files = sorted(path for path in folder.glob("*.jsonl") if path.name != "testmini.jsonl")
    rows = [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    return items, [(row["id"], row["response"]) for row in rows if row["id"] in known]


def _mmmu(rule: Benchmark, folder: Path) -> Recorded:
    items, given = [], []
    for path in sorted(folder.glob("*/[A-Z]*.json")):
        table = read_file(path, "recorded", (), name_column="id")
        items += rule.items(table)
        given += [(row.values["id"], row.values["response"]) for row in table.rows]
    return items, given


SOURCES: dict[str, tuple[Callable[[], Benchmark], Callable[[Benchmark, Path], Recorded]]] = {
    "mathvista": (MathVista, _mathvista),
    "mathvision": (MathVision, _mathvision),
    "mmmu": (MMMU, _mmmu),
}


def repeated(given: list[tuple[str, str]], count: int) -> list[Answer]:
    """At least `count` answers: all of `given`, as often as it takes, each time as further samples."""
    rounds = -(-count // len(given))
    seen: dict[str, int] = {}
    answers = []
    for name, response in islice(cycle(given), rounds * len(given)):
        sample = seen.get(name, 0)
        seen[name] = sample + 1
        answers.append(Answer(name, response=response, sample=sample))
    return answers


def measure(name: str, recorded: Path, *, count: int, workers: int) -> dict[str, Any]:
    """Score one benchmark's answers as `evaluate.py` does, and time it."""
    kind, read = SOURCES[name]
    rule = kind()
    items, given = read(rule, recorded / name)
    answers = repeated(given, count)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        scorer = scorer_for(rule, None, workers=workers)
        try:
            file = RecordFile(Path(folder), {})
            known = {item.id: item for item in items}
            records = score_answers(scorer, known, answers, file, label=name, unit=rule.unit)
        finally:
            scorer.close()
        scored = time.perf_counter()
        result = summarise(rule, items, records, make_stamp(rule, items, subset="recorded"), seed=0)
        summed_up = time.perf_counter()
    return {
        "answers": len(answers),
        "different": len(given),
        "right": result["right"],
        "unparseable": result["unparseable"],
        "seconds": round(scored - start, 2),
        "seconds_of_summary": round(summed_up - scored, 2),
        "answers_per_second": round(len(answers) / (scored - start)),
    }


def main() -> None:
    """Print a line a benchmark, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", type=Path, default=RECORDED, help="folder of recorded answers")
    parser.add_argument("--answers", type=int, default=10_000, help="at least so many of each benchmark")
    parser.add_argument("--workers", type=int, default=2, help="processes that score")
    given = parser.parse_args()
    if not given.recorded.is_dir():
        parser.error(
            f"--recorded: {given.recorded} is no folder: name the one that holds mathvista/, mathvision/, mmmu/"
        )
    results = {}
    for name in SOURCES:
        results[name] = measure(name, given.recorded, count=given.answers, workers=given.workers)
        print(f"{name}: {results[name]}")
    print(json.dumps({"workers": given.workers, "benchmarks": results}))


if __name__ == "__main__":
    main()

"""Scoring many answers: in worker processes, with a progress bar, going on where it was interrupted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from atrl.benchmarks.base import UNREAD, Answer, Benchmark, Item, Scored, score_one
from atrl.benchmarks.judge import Judge, Judged, judge_all
from atrl.rewards.workers import KillableWorkers

if TYPE_CHECKING:
    from atrl.benchmarks.rewarded import RewardedBenchmark

CPU_SECONDS = 2.0
"""Processor time for one answer; what takes longer counts as unparseable."""
MEMORY_BYTES = 2**30
_CHUNK = 512

Pair = tuple[Item, Answer]


class Scorer(Protocol):
    """Judges answers, in order; None where no verdict could be had, which is not a wrong answer."""

    def score(self, pairs: Sequence[Pair]) -> list[Scored | None]:
        """One verdict an answer."""

    def close(self) -> None:
        """End what it started."""


class RuleScorer:
    """The benchmark's rule in worker processes; an answer that breaks a limit is unparseable."""

    def __init__(self, benchmark: Benchmark, *, workers: int) -> None:
        self._benchmark = benchmark
        self._workers = KillableWorkers(
            workers=workers,
            cpu_seconds=CPU_SECONDS,
            memory_bytes=MEMORY_BYTES,
            prepare=_load_sympy if benchmark.uses_sympy else None,
        )

    def score(self, pairs: Sequence[Pair]) -> list[Scored | None]:
        calls = [(self._benchmark, item, answer.response, answer.extraction) for item, answer in pairs]
        broken = replace(UNREAD, extras=self._benchmark.unanswered)
        return [broken if scored is None else scored for scored in self._workers.run(score_one, calls)]

    def close(self) -> None:
        self._workers.close()


class RewardScorer:
    """The reward of the benchmark, in its own worker processes."""

    def __init__(self, benchmark: RewardedBenchmark) -> None:
        self._benchmark = benchmark

    def score(self, pairs: Sequence[Pair]) -> list[Scored | None]:
        return list(self._benchmark.score(pairs))

    def close(self) -> None:
        self._benchmark.close()


class JudgeScorer:
    """A language model judges responses; recorded extractions are left to the rule."""

    def __init__(self, benchmark: Judged, judge: Judge, rule: RuleScorer) -> None:
        self._benchmark, self._judge, self._rule = benchmark, judge, rule

    def score(self, pairs: Sequence[Pair]) -> list[Scored | None]:
        by_judge = iter(judge_all(self._benchmark, self._judge, [pair for pair in pairs if _is_response(pair)]))
        by_rule = iter(self._rule.score([pair for pair in pairs if not _is_response(pair)]))
        return [next(by_judge if _is_response(pair) else by_rule) for pair in pairs]

    def close(self) -> None:
        self._rule.close()


def _is_response(pair: Pair) -> bool:
    return pair[1].extraction is None


def scorer_for(benchmark: Benchmark, judge: Judge | None, *, workers: int | None) -> Scorer:
    """The scorer that a benchmark and the chosen judge call for.

    Raises:
        ValueError: if a judge was chosen for a benchmark that has no question for one.
    """
    from atrl.benchmarks.rewarded import RewardedBenchmark

    if judge is not None and not isinstance(benchmark, Judged):
        raise ValueError(f"judge: {benchmark.name} is scored by its rule alone: leave the judge out (judge=null)")
    if isinstance(benchmark, RewardedBenchmark):
        return RewardScorer(benchmark)
    rule = RuleScorer(benchmark, workers=workers or os.cpu_count() or 1)
    return JudgeScorer(benchmark, judge, rule) if judge is not None and isinstance(benchmark, Judged) else rule


def _load_sympy() -> None:
    import logging

    from atrl.benchmarks.latex_value import latex_value

    logging.disable(logging.CRITICAL)
    latex_value("\\frac{1}{2}")


@dataclass(frozen=True, slots=True)
class Record:
    """One line of `records.jsonl`."""

    id: str
    sample: int
    gold: str
    scored: Scored | None
    unit: str
    """What the problem stands or falls with (`Benchmark.unit`)."""

    def as_json(self) -> dict[str, Any]:
        """`correct` is null, and the score, where no verdict could be had."""
        scored = self.scored
        return {
            "id": self.id,
            "unit": self.unit,
            **({"sample": self.sample} if self.sample else {}),
            "extraction": scored.extraction if scored else None,
            "prediction": scored.prediction if scored else None,
            "gold": self.gold,
            "correct": None if scored is None else scored.score == 1,
            "score": None if scored is None else scored.score,
            **({"extras": dict(scored.extras)} if scored and scored.extras else {}),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Record:
        """What `as_json` wrote; without a unit, as before there were any, each problem is its own."""
        score = row["score"]
        scored = None
        if score is not None:
            scored = Scored(row["extraction"], row["prediction"], score, row.get("extras", {}))
        return cls(row["id"], row.get("sample", 0), row["gold"], scored, row.get("unit", row["id"]))


class RecordFile:
    """`records.jsonl`, written chunk by chunk so that an interrupted evaluation can go on.

    Args:
        folder: of the evaluation.
        job: all that the verdicts depend on; records of another job are thrown away.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        self._path, self._job_path = folder / "records.jsonl", folder / "records.job.json"
        self._job = json.dumps(job, sort_keys=True, default=str)
        self.finished = {(record.id, record.sample): record for record in self._old() if record.scored is not None}

    def _old(self) -> Iterator[Record]:
        if not self._path.is_file() or not self._job_path.is_file():
            return
        if self._job_path.read_text(encoding="utf-8") != self._job:
            return
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                yield Record.from_json(json.loads(line))
            except (ValueError, KeyError):
                return  # the line that was being written

    def start(self) -> None:
        """Write what is finished, and nothing else."""
        self._job_path.write_text(self._job, encoding="utf-8")
        self.write(list(self.finished.values()))

    def append(self, records: Sequence[Record]) -> None:
        """Add a chunk."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_lines(records))

    def write(self, records: Sequence[Record]) -> None:
        """Replace the file, in one move."""
        draft = self._path.with_suffix(".draft")
        draft.write_text(_lines(records), encoding="utf-8")
        draft.replace(self._path)


def _lines(records: Sequence[Record]) -> str:
    return "".join(json.dumps(record.as_json()) + "\n" for record in records)


def score_answers(
    scorer: Scorer,
    items: Mapping[str, Item],
    answers: Sequence[Answer],
    file: RecordFile,
    *,
    label: str,
    unit: Callable[[Item], str],
) -> list[Record]:
    """Every answer's record, in order; what `file` already holds is not scored again.

    Args:
        label: of the progress bar.
        unit: of an item, as the benchmark has it.
    """
    from tqdm import tqdm

    records = dict(file.finished)
    file.start()
    open_answers = [answer for answer in answers if (answer.id, answer.sample) not in records]
    with tqdm(total=len(answers), initial=len(answers) - len(open_answers), desc=label, disable=None) as progress:
        for start in range(0, len(open_answers), _CHUNK):
            chunk = open_answers[start : start + _CHUNK]
            verdicts = scorer.score([(items[answer.id], answer) for answer in chunk])
            fresh = [
                Record(answer.id, answer.sample, items[answer.id].gold, scored, unit(items[answer.id]))
                for answer, scored in zip(chunk, verdicts, strict=True)
            ]
            file.append(fresh)
            records.update({(record.id, record.sample): record for record in fresh})
            progress.update(len(chunk))
    ordered = [records[answer.id, answer.sample] for answer in answers]
    file.write(ordered)
    return ordered

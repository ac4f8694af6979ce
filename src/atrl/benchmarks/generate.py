"""A checkpoint's answers to benchmarks: drawn by the sampler in chunks, each written before the next is drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrl.benchmarks.base import Answer, Benchmark, Item
from atrl.benchmarks.grounding import ControlAnswers
from atrl.data.images import check_images
from atrl.data.prompts import IMAGE_MARK, VIDEO_MARK
from atrl.data.rows import Row, RowFormat
from atrl.data.videos import check_videos
from atrl.evaluation.grounding import Swap, blanked, check_swap, picture_digests, swapped
from atrl.evaluation.score import held_out_sampling
from atrl.preflight import check_videos_taken, within_positions
from atrl.types import Problem

if TYPE_CHECKING:
    from atrl.data.tables import Table
    from atrl.evaluation.settings import EvaluateSettings

_CHUNK = 64
_FORMAT = RowFormat(id_column=None, choices_column=None)


class Session:
    """A checkpoint that is loaded once and answers several benchmarks; a context manager.

    Args:
        settings: how many samples, and the seed.
        model: of the group `model`, not loaded yet.
        rollout: of the group `rollout`, its sampler not started yet.
        folder: of the evaluation.
    """

    def __init__(self, settings: EvaluateSettings, model: Any, rollout: Any, folder: Path) -> None:
        self._settings, self._model, self._rollout, self._folder = settings, model, rollout, folder
        self._sampler = rollout.watched_sampler(folder, lambda: "the answers so far are in responses.jsonl")
        self._problems: dict[str, list[Problem]] = {}
        self._swaps: dict[str, Swap] = {}
        self.digests: dict[str, dict[str, tuple[bytes, ...]]] = {}
        """By benchmark and problem, of its own pictures and videos, once `answer` has been called."""
        self._builder: Any = None
        self.pixels: dict[str, Any] = {}
        self._weights: dict[str, Any] = {}
        samples = max(1, settings.samples)
        self._sampling = held_out_sampling(rollout.sampling, samples=samples, greedy=not settings.samples)

    @property
    def decoding(self) -> dict[str, Any]:
        """How answers are drawn, for the stamp."""
        sampling = self._sampling
        return {
            "temperature": sampling.temperature,
            "samples": sampling.group_size,
            "max_response_tokens": sampling.max_response_tokens,
            "max_prompt_tokens": self._rollout.max_prompt_tokens,
        }

    @property
    def frames(self) -> int | str:
        """Of a video that are shown, for the stamp."""
        chosen = self._rollout.frames
        return chosen.count if chosen.rate is None else f"{chosen.rate:g} per second, {chosen.count} at most"

    def check(self, tasks: Sequence[tuple[Benchmark, Table, list[Item]]]) -> None:
        """Make every problem, so that what can't be used stops the evaluation before a model loads.

        Raises:
            ValueError: as `problems`, for a checkpoint that is not there, for videos that can't be read, or that model
                or sampler don't take, and for a benchmark without pictures to exchange where that is asked for.
        """
        self._model.check()
        self._rollout = within_positions(self._rollout, self._model)
        self._rollout.sampler.check(self._model.model_type())
        for benchmark, table, items in tasks:
            self._problems[benchmark.name] = problems(benchmark, table, items)
            check_images(self._problems[benchmark.name])
            check_videos_taken(self._problems[benchmark.name], self._model.model_type(), self._rollout.sampler)
            check_videos(self._problems[benchmark.name])
            if self._settings.grounding:
                listed = self._problems[benchmark.name]
                swap = self._swaps[benchmark.name] = swapped(listed, self._settings.seed)
                check_swap(swap, among=f"{len(listed)} of {benchmark.name}", raised="limit")

    def __enter__(self) -> Session:
        import torch

        if self._settings.threads is not None:
            torch.set_num_threads(self._settings.threads)
        loaded = self._model.load(self._folder)
        self._builder = self._rollout.prompt_builder(loaded, "")
        self.pixels = pixel_limits(loaded.processor.image_processor)
        self._weights = weights_of(loaded.folder)
        everything = [problem for listed in self._problems.values() for problem in listed]
        self._sampler.start(self._rollout.handle(loaded, everything))
        return self

    def __exit__(self, *error: object) -> None:
        self._sampler.close()

    def answer(self, benchmark: Benchmark, table: Table, items: Sequence[Item], folder: Path) -> list[Answer]:
        """Every problem's answers, in order; those in `folder`'s `responses.jsonl` are not drawn again.

        Unless they answer another question or other pictures, or another checkpoint gave them: what was asked of a
        problem goes with its answers, and with all of them what drew them and how.

        A prompt that is longer than ``rollout.max_prompt_tokens`` is not asked: its answers are empty, so that it
        counts as wrong, and the figures are still of the whole benchmark.
        """
        listed = self._problems[benchmark.name]
        pictures = self.digests[benchmark.name] = {p.id: picture_digests(p) for p in listed}
        done = self._answered(benchmark, listed, folder, asked={p.id: _digest(p, pictures[p.id]) for p in listed})
        return _as_answers(done, [item.id for item in items])

    def answer_controls(self, benchmark: Benchmark, folder: Path) -> ControlAnswers | None:
        """The answers to the problems that have a partner, blanked and swapped; None where nobody asked for these.

        Those of each are kept in a folder of its name within `folder`, as the true ones are in `folder`. A problem
        whose prompt is too long, with its own pictures or its partner's, is left out; None also where all are.
        """
        swap = self._swaps.get(benchmark.name)
        if swap is None:
            return None
        true = {problem.id: problem for problem in self._problems[benchmark.name]}
        own = [true[problem.id] for problem in swap.problems]
        pictures = self.digests[benchmark.name]
        done = {
            "blank": self._answered(
                benchmark, own, folder / "blank", asked={p.id: _digest(p, pictures[p.id]) for p in own},
                pictures="blank", shown=lambda chunk: blanked(chunk, self._rollout.frames),
            ),
            "swapped": self._answered(
                benchmark, swap.problems, folder / "swapped", pictures="swapped",
                asked={
                    p.id: _digest(p, picture_digests(p), whose)
                    for p, whose in zip(swap.problems, swap.partners, strict=True)
                },
            ),
        }  # fmt: skip
        unasked = self._unasked(own, done["blank"]) | self._unasked(swap.problems, done["swapped"])
        kept = [problem.id for problem in own if problem.id not in unasked]
        if not kept:
            return None
        return ControlAnswers(
            ids=kept,
            answers={name: _as_answers(found, kept) for name, found in done.items()},
            left_out=len(true) - len(kept),
            same_answer=len(set(kept).intersection(swap.same_answer)),
        )

    def _answered(
        self,
        benchmark: Benchmark,
        listed: Sequence[Problem],
        folder: Path,
        *,
        asked: Mapping[str, str],
        pictures: str | None = None,
        shown: Callable[[Sequence[Problem]], Sequence[Problem]] = list,
    ) -> dict[str, list[str]]:
        """By problem its answers, from `folder` or drawn, those of a chunk by what `shown` makes of its problems."""
        from tqdm import tqdm

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "responses.jsonl"
        job: dict[str, Any] = {"benchmark": benchmark.name, "decoding": self.decoding, "weights": self._weights}
        job |= {"seed": self._settings.seed, "frames": self.frames, "pixels": self.pixels}
        job |= {} if pictures is None else {"pictures": pictures}
        label = f"answering {benchmark.name}" + (f", {pictures}" if pictures else "")
        done = _finished(path, job, asked, self._sampling.group_size)
        waiting = [problem for problem in listed if problem.id not in done]
        with tqdm(total=len(listed), initial=len(listed) - len(waiting), desc=label, disable=None) as progress:
            for start in range(0, len(waiting), _CHUNK):
                chunk = waiting[start : start + _CHUNK]
                fresh = self._draw(shown(chunk))
                with path.open("a", encoding="utf-8") as file:
                    file.write("".join(_rows(problem.id, fresh[problem.id], asked[problem.id]) for problem in chunk))
                done |= fresh
                progress.update(len(chunk))
        return done

    def _unasked(self, listed: Sequence[Problem], done: Mapping[str, Sequence[str]]) -> set[str]:
        """Ids of the problems that are too long to be asked: their answers are empty, but so may others be."""
        return set(self._builder.build_all([problem for problem in listed if not any(done[problem.id])]).dropped)

    def _draw(self, chunk: Sequence[Problem]) -> dict[str, list[str]]:
        built = self._builder.build_all(chunk)
        answers = {name: [""] * self._sampling.group_size for name in built.dropped}
        if built.prompts:
            seed = f"{self._settings.seed}/benchmark"
            for group in self._sampler.generate(built.prompts, self._sampling, seed=seed):
                answers[group.prompt.problem.id] = list(group.texts)
        return answers


def problems(benchmark: Benchmark, table: Table, items: Sequence[Item]) -> list[Problem]:
    """What is asked: the official prompt, its pictures or video in front unless it says where they stand.

    Raises:
        ValueError: if a picture or video is missing, the prompt has other marks than pictures, or a row holds what the
            benchmark can't ask.
    """
    columns = [benchmark.columns[role] for role in benchmark.image_roles if role in benchmark.columns]
    rows = dict(zip((item.id for item in benchmark.items(table)), table.rows, strict=True))
    return [_problem(benchmark, item, rows[item.id], columns, table.folder) for item in items]


def _problem(benchmark: Benchmark, item: Item, row: Row, columns: Sequence[Any], folder: Path | None) -> Problem:
    benchmark.check_asked(item, row)
    images = [value for names in columns for value in _images(row, names)]
    text = benchmark.prompt(item)
    marked = benchmark.own_marks and IMAGE_MARK in text
    text = (text if marked else text.replace(IMAGE_MARK, "")).replace(VIDEO_MARK, "").strip()
    pictured = [image for image in images if not hasattr(image, "size")]
    gold = item.gold.strip()  # empty in one of LogicVista's problems, which rows of training data may not be
    values = {"problem": text, "answer": gold or "none", "images": pictured, "videos": benchmark.video(item)}
    if len(pictured) == len(images):
        problem = _FORMAT.to_problem(Row(values, row.place, row.number), item.id, folder)
        return replace(problem, answer=gold)
    marks = "" if marked else IMAGE_MARK * len(images)
    return Problem(id=item.id, question=marks + text, answer=item.gold, images=tuple(images))


def _images(row: Row, names: str | Sequence[str]) -> list[Any]:
    """The pictures of the first column that holds some."""
    for name in [names] if isinstance(names, str) else names:
        value = row.values.get(name)
        if value is not None:
            return list(value) if isinstance(value, list | tuple) else [value]
    return []


def pixel_limits(processor: Any) -> dict[str, Any]:
    """How small and how large the image processor makes a picture, in pixels."""
    size = getattr(processor, "size", None) or {}
    read = size.get if hasattr(size, "get") else lambda name: getattr(size, name, None)
    return {
        "min_pixels": getattr(processor, "min_pixels", None) or read("shortest_edge"),
        "max_pixels": getattr(processor, "max_pixels", None) or read("longest_edge"),
    }


def weights_of(folder: Path) -> dict[str, Any]:
    """What tells the checkpoint in `folder` from another that is put in its place, or in that of a link to it."""
    files = sorted(folder.resolve().glob("*.safetensors"))
    return {"folder": str(folder.resolve()), "changed": {file.name: file.stat().st_mtime_ns for file in files}}


def _digest(problem: Problem, pictures: Sequence[bytes], partner: str = "") -> str:
    """Of what is asked, its pictures and videos, and whose these are where they are not the problem's own."""
    text = f"{problem.question}\n{partner}" if partner else problem.question
    return hashlib.sha256(b"".join([text.encode("utf-8", "replace"), *pictures])).hexdigest()[:16]


def _as_answers(done: Mapping[str, Sequence[str]], ids: Sequence[str]) -> list[Answer]:
    return [Answer(id=name, response=text, sample=sample) for name in ids for sample, text in enumerate(done[name])]


def _rows(problem_id: str, texts: Sequence[str], digest: str) -> str:
    return "".join(json.dumps({"id": problem_id, "response": text, "asked": digest}) + "\n" for text in texts)


def _finished(path: Path, job: dict[str, Any], asked: Mapping[str, str], samples: int) -> dict[str, list[str]]:
    """The complete answers of an interrupted evaluation by problem; the file is made to hold these alone.

    Those to what is `asked` now, and those to problems that are not asked this time.
    """
    note = path.with_name("responses.job.json")
    wanted = json.dumps(job, sort_keys=True)
    found: dict[str, list[dict[str, str]]] = {}
    if path.is_file() and note.is_file() and note.read_text(encoding="utf-8") == wanted:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break  # the line that was being written
            if asked.get(row["id"], row["asked"]) == row["asked"]:
                found.setdefault(row["id"], []).append(row)
    whole = {problem_id: rows for problem_id, rows in found.items() if len(rows) == samples}
    note.write_text(wanted, encoding="utf-8")
    path.write_text("".join(json.dumps(row) + "\n" for rows in whole.values() for row in rows), encoding="utf-8")
    return {problem_id: [row["response"] for row in rows] for problem_id, rows in whole.items()}

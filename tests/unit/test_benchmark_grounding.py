"""A benchmark without the right pictures, answered by a policy that reads: its figures, and what they are of."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from PIL import Image

from atrl.benchmarks import run
from atrl.benchmarks.base import Answer, Benchmark
from atrl.benchmarks.generate import Session
from atrl.benchmarks.grounding import grounding_lines
from atrl.benchmarks.logicvista import LogicVista
from atrl.benchmarks.mathvista import MathVista
from atrl.benchmarks.result import make_stamp
from atrl.data.frames import FrameSampler
from atrl.data.rows import Row
from atrl.data.tables import Table
from atrl.evaluation.compare import compare
from atrl.evaluation.grounding import picture_digests, swapped
from atrl.evaluation.settings import EvaluateSettings
from atrl.rollout.base import Sampling
from atrl.types import Problem, Prompt, Video
from tests.unit.scripted import Reader, half_picture

RULE = MathVista()


class Builder:
    """Prompts of problems whose pictures are narrow; those with a wide one are too long."""

    def build_all(self, problems):
        fits = {p.id: all(image.width <= 28 for image in p.images) for p in problems}
        prompts = [Prompt(p, [1], pixels={}, images=(), engine_token_ids=[1]) for p in problems if fits[p.id]]
        return SimpleNamespace(prompts=prompts, dropped=[name for name, does in fits.items() if not does])


def row(number: int, picture: Image.Image | None) -> Row:
    values = {"pid": f"n{number}", "question_type": "free_form", "answer_type": "integer", "answer": str(number)}
    return Row(values | {"query": "Which number?", "decoded_image": picture}, f"row {number}", number)


def pictured(*numbers: int) -> list[Row]:
    return [row(number, half_picture(number)) for number in numbers]


def wide(number: int) -> Row:
    return row(number, half_picture(number).resize((56, 28)))


class Asked:
    """A benchmark's answers by a policy that reads, and what a `Session` and its scoring left of them."""

    def __init__(self, folder: Path, rows: list[Row], rule: Benchmark = RULE, **settings) -> None:
        self.settings = EvaluateSettings(**{"checkpoint": "c", "samples": 0, "grounding": True} | settings)
        self.reader, self.folder = Reader(), folder
        self.checked: list[str] = []
        self.reader.start = self.reader.close = lambda *_: None
        rollout = SimpleNamespace(
            watched_sampler=lambda folder, rescue: self.reader,
            prompt_builder=lambda loaded, instruction: Builder(),
            handle=lambda loaded, problems: None,
            sampler=SimpleNamespace(check=self.checked.append),
            sampling=Sampling(group_size=1),
            frames=FrameSampler(),
            max_prompt_tokens=1,
        )
        processor = SimpleNamespace(image_processor=SimpleNamespace())
        loaded = SimpleNamespace(folder=folder / "model", processor=processor)
        model = SimpleNamespace(
            check=lambda: None,
            model_type=lambda: "qwen2_5_vl",
            positions=lambda: None,
            load=lambda folder: loaded,
        )
        table = Table("rows", "rows", list(rows[0].values), rows, None)
        self.task = run.Task(rule, table, rule.items(table), f"all {len(rows)}", folder)
        self.session = Session(self.settings, model, rollout, folder)
        self.session.check([(rule, table, self.task.items)])
        with self.session:
            self.answers = self.session.answer(rule, table, self.task.items, folder)
            self.controls = self.session.answer_controls(rule, folder)

    def scored(self) -> dict:
        """The content of `evaluation.json`."""
        digests = self.session.digests["mathvista"]
        stamp = partial(make_stamp, RULE, decoding=self.session.decoding, digests=digests)
        items = self.task.items
        true = stamp(items, subset=self.task.subset)
        result, records = run._score(self.task, items, self.answers, true, None, self.settings)
        result["grounding"] = run._score_controls(self.task, self.controls, records, stamp, None, self.settings)
        return run._finish(self.task, result, None)


def test_the_same_problems_three_times(tmp_path, capsys):
    """Four of five numbers have a picture and are read; of their blanks 0 is half of 0; no partner's is right."""
    asked = Asked(tmp_path, [*pictured(0, 2, 4, 6), row(7, None)], samples=2)
    assert asked.checked == ["qwen2_5_vl"], "a sampler is asked before a model loads"
    result = asked.scored()
    assert result["headline"]["value"] == 80.0 and result["samples"] == 10
    found = result["grounding"]
    assert (found["headline"], found["problems"], found["left_out"], found["same_answer"]) == ("accuracy", 4, 1, 0)
    for name, right in (("true", 8), ("blank", 2), ("swapped", 0)):
        side = found[name]
        assert (side["value"], side["right"], side["samples"]) == (100 * right / 8, right, 8)
        assert side["ci95"][0] <= side["value"] <= side["ci95"][1]
    assert found["true"]["ci95"] == pytest.approx([51.0109, 100])  # Wilson's of four problems: 4 / (4 + 1.96²)
    assert found["swapped"]["ci95"] == pytest.approx([0, 100 - 51.0109])
    assert json.loads((tmp_path / "evaluation.json").read_text()) == result
    lines = capsys.readouterr().out.splitlines()
    assert "  accuracy without the right pictures, on 4 problems, 1 more left out:" in lines
    assert f"    {'swapped':30}   0.00  [0.00, 48.99]  another problem's pictures" in lines
    assert len({seed for _, seed in asked.reader.asked}) == 1, "each problem keeps its random numbers"


def test_each_control_leaves_a_result_that_can_be_compared(tmp_path):
    """Blanked, three of four are lost; the stamps say that the pictures are what differs."""
    Asked(tmp_path, pictured(0, 2, 4, 6)).scored()
    config = OmegaConf.create({"compare": [str(tmp_path), str(tmp_path / "blank")], "seed": 0})
    comparison = compare(config, tmp_path)
    assert comparison["stamp_differences"] == {"pictures": [None, "blank"]}
    assert (comparison["difference"], comparison["lost"]) == (-75.0, ["n2", "n4", "n6"])


def test_a_prompt_that_is_too_long_with_anothers_picture_is_left_out_of_all(tmp_path):
    """So is the problem whose own picture is too large: as one of the benchmark's it counts as wrong."""
    asked = Asked(tmp_path, [*pictured(0, 2, 4, 6), wide(8)])
    swap = asked.session._swaps["mathvista"]
    (receiver,) = [p.id for p, whose in zip(swap.problems, swap.partners, strict=True) if whose == "n8"]
    kept = [name for name in ("n0", "n2", "n4", "n6") if name != receiver]
    assert asked.controls.ids == kept and asked.controls.left_out == 2
    for answers in asked.controls.answers.values():
        assert [answer.id for answer in answers] == kept and all(answer.response for answer in answers)
    result = asked.scored()
    assert result["headline"]["value"] == 80.0 and result["grounding"]["true"]["value"] == 100.0


def test_only_whose_partner_changed_is_asked_again(tmp_path):
    rows = pictured(0, 2, 4, 6, 8, 10)
    first = Asked(tmp_path, rows)
    again = Asked(tmp_path, rows)
    assert again.reader.asked == [] and again.controls == first.controls
    fewer = Asked(tmp_path, rows[:-1])
    before, now = (
        dict(zip((p.id for p in swap.problems), swap.partners, strict=True))
        for swap in (first.session._swaps["mathvista"], fewer.session._swaps["mathvista"])
    )
    changed = [name for name in now if now[name] != before[name]]
    assert 0 < len(changed) < len(now)
    assert [ids for ids, _ in fewer.reader.asked] == [changed]


def test_the_same_question_of_another_picture_is_asked_again(tmp_path):
    """As with another `data.image_folder`; so are the blank, and the problem that had the other picture."""
    rows = pictured(0, 2, 4)
    first = Asked(tmp_path, rows)
    (receiver,) = [p.id for p, whose in _pairs(first) if whose == "n2"]
    other = Asked(tmp_path, [rows[0], row(2, half_picture(8)), rows[2]])
    assert _pairs(other, ids=True) == _pairs(first, ids=True)
    assert [ids for ids, _ in other.reader.asked] == [["n2"], ["n2"], [receiver]]
    assert [answer.response for answer in other.answers] == [rf"\boxed{{{number}}}" for number in (0, 8, 4)]
    assert Asked(tmp_path, [rows[0], row(2, half_picture(8)), rows[2]]).reader.asked == []


def _pairs(asked: Asked, *, ids: bool = False) -> list:
    swap = asked.session._swaps["mathvista"]
    return [(p.id if ids else p, whose) for p, whose in zip(swap.problems, swap.partners, strict=True)]


def test_what_is_asked_is_the_content_of_pictures_and_videos_wherever_they_lie(tmp_path):
    def lying(folder: str, number: int) -> list[Problem]:
        (tmp_path / folder).mkdir()
        picture, video = tmp_path / folder / "1.png", tmp_path / folder / "1.mp4"
        half_picture(number).save(picture)
        video.write_bytes(b"%d" % number)
        return [
            Problem("1", "<image>?", "", images=(picture,)),
            Problem("1", "<video>?", "", videos=(Video(video),)),
            Problem("1", "<video>?", "", videos=(Video((picture,), 1.0),)),
            Problem("1", "<video>?", "", videos=(Video((picture,), 2.0),)),
        ]

    here, there, other = ([picture_digests(p) for p in lying(*of)] for of in (("a", 2), ("b", 2), ("c", 4)))
    assert here == there and len({*here, *other}) == 8


def test_other_pictures_of_the_same_questions_are_said_not_to_be_alike(tmp_path):
    for folder, last in (("a", 4), ("b", 6)):
        (tmp_path / folder).mkdir()
        rows = [row(number, half_picture(shown)) for number, shown in ((1, 0), (3, 2), (5, last))]
        Asked(tmp_path / folder, rows).scored()
    config = OmegaConf.create({"compare": [str(tmp_path / "a"), str(tmp_path / "b")], "seed": 0})
    assert list(compare(config, tmp_path)["stamp_differences"]) == ["pictures_sha256"]


def test_an_empty_gold_answer_of_the_official_data_is_asked_and_scored_by_the_rule(tmp_path):
    """One of LogicVista's: letters never equal it, and a response without any text does."""
    rows = [Row({"id": n, "question": "Which?", "answer": gold}, f"row {n}", n) for n, gold in ((1, ""), (2, "0"))]
    asked = Asked(tmp_path, rows, LogicVista(), grounding=None)
    assert [problem.answer for problem in asked.session._problems["logicvista"]] == ["", "0"]
    assert [answer.response for answer in asked.answers] == [r"\boxed{0}"] * 2
    for first, right in (asked.answers[0], [False, True]), (Answer("1", ""), [True, True]):
        answers = [first, asked.answers[1]]
        result, records = run._score(asked.task, asked.task.items, answers, {"judge": "rules"}, None, asked.settings)
        assert [record.scored.score == 1 for record in records] == right
        assert result["headline"]["value"] == 50.0 * sum(right)


def test_a_headline_that_counts_nothing_has_no_figure():
    """As We-Math's, where no composite has all of its steps."""
    side = {"value": None, "ci95": [None, None], "right": 1, "samples": 2}
    sides = dict.fromkeys(("true", "blank", "swapped"), side)
    lines = grounding_lines({"headline": "score_strict", "problems": 2, "left_out": 0, "same_answer": 0, **sides})
    assert lines[0] == "  score_strict without the right pictures, on 2 problems:"
    assert lines[1] == f"    {'true':30}   –  their own pictures" and len(lines) == 4


def test_nothing_more_is_asked_unless_told_to(tmp_path):
    asked = Asked(tmp_path, pictured(0, 2), grounding=None)
    assert asked.controls is None and len(asked.reader.asked) == 1
    assert not (tmp_path / "blank").exists()


def test_pictures_that_can_not_be_exchanged_are_refused_before_a_model_loads(tmp_path):
    same = [row(number, half_picture(2)) for number in (2, 4)]
    with pytest.raises(
        ValueError, match=r"^grounding=true needs two .* got none among 2 of mathvista: .* grounding=false$"
    ):
        Asked(tmp_path, same)
    assert not list(tmp_path.iterdir())


def test_a_swap_says_whose_pictures_each_problem_has(tmp_path):
    asked = Asked(tmp_path, pictured(0, 2, 4))
    problems = {problem.id: problem for problem in asked.session._problems["mathvista"]}
    swap = swapped(list(problems.values()), 0)
    for problem, whose in zip(swap.problems, swap.partners, strict=True):
        assert whose != problem.id and problem.images == problems[whose].images

"""The benchmarks' YAMLs say what their classes do, compose alone and together, and lead to a prompt."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from atrl.benchmarks.base import Answer, Benchmark
from atrl.benchmarks.generate import problems
from atrl.benchmarks.local import LocalProblems
from atrl.benchmarks.mathvista import MathVista
from atrl.benchmarks.mmmu import MMMU
from atrl.benchmarks.source import OfficialRows, rows_of
from atrl.benchmarks.vsibench import VsiBench
from atrl.config import check_config
from atrl.data.geometry import GeometryProblems
from atrl.data.rows import Row
from atrl.data.tables import Table
from atrl.data.tabular import TabularProblems
from atrl.evaluation.settings import EvaluateSettings
from atrl.rewards.exact import ExactAnswer
from atrl.rewards.weighted import WeightedReward
from atrl.schema import locate
from tests.unit.video_files import encode

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "benchmark").glob("*.yaml") if path.stem != "math")


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("evaluate", [*overrides, "checkpoint=tiny"])


def test_every_benchmark_that_was_promised_is_there():
    assert set(NAMES) >= {
        *("mathvista", "mathverse", "wemath", "mathvision", "logicvista", "dynamath", "mmmu", "mmmu_pro", "mmstar"),
        *("hallusionbench", "mmvet", "vsibench", "geometry3k", "mmk12", "geometry", "easy_vqa", "jsonl"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_yaml_holds_its_class_defaults(name):
    config = composed(f"benchmark={name}")
    check_config(config, sections={"": EvaluateSettings})
    node = OmegaConf.to_container(config.benchmark[name], resolve=False)
    kind = locate(node.pop("_target_"))
    assert issubclass(kind, Benchmark)
    assert kind.name == name
    defaults = {
        field.name: field.default if field.default is not dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(kind)
        if field.name != "reward"
    }
    node.pop("reward", None)
    assert node == {key: value for key, value in defaults.items() if key in node}
    assert set(defaults) - set(node) <= {"config", "split", "instruction"}
    assert config.limit is None and config.samples == 0


def test_a_judge_is_a_component():
    config = composed("benchmark=mmvet", "judge=openai", "judge.model=m")
    check_config(config, sections={"": EvaluateSettings})
    assert config.judge.model == "m"


def test_a_suite_and_a_list_hold_several():
    assert set(composed("benchmark=math").benchmark) == {
        *("mathvista", "mathverse", "mathvision", "wemath", "logicvista", "dynamath"),
    }
    several = composed("benchmark=[mmmu,mmstar]", "limit=7")
    assert set(several.benchmark) == {"mmmu", "mmstar"}
    assert several.limit == 7


def test_a_problem_source_is_a_benchmark_too():
    rule = locate("atrl.benchmarks.local.GeometryTask")(reward=None)
    table = rows_of(GeometryProblems(), rule)
    items = rule.items(table)
    made = problems(rule, table, items[:2])
    source = GeometryProblems().load("test")
    assert [(p.id, p.question, p.answer) for p in made] == [(p.id, p.question, p.answer) for p in list(source)[:2]]
    assert len(made[0].images) == 1


def test_pictures_go_in_front_of_the_official_prompt(tmp_path):
    for name in ("1", "2"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    row = {
        **{"id": "validation_Art_1", "answer": "A", "question": "Which of <image 1>, <image 2>?"},
        **{"options": "['x', 'y']", "question_type": "multiple-choice", "image_1": "1.png", "image_2": "2.png"},
    }
    rule = MMMU()
    table = Table("t", "t", list(row), [Row(row, "row 1 of t", 1)], tmp_path)
    (made,) = problems(rule, table, rule.items(table))
    assert made.question == (
        "<image><image>Which of <image 1>, <image 2>?\n\n(A) x\n(B) y\n\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert made.images == (tmp_path / "1.png", tmp_path / "2.png")


def test_a_missing_picture_is_named(tmp_path):
    row = {"pid": "1", "answer": "3", "question_type": "free_form", "answer_type": "integer"}
    row |= {"query": "How many?", "image": "gone.png"}
    rule = MathVista()
    table = Table("t", "t", list(row), [Row(row, "row 1 of t", 1)], tmp_path)
    with pytest.raises(ValueError, match=r"problem 1 \(row 1 of t\): image .*gone.png' does not exist"):
        problems(rule, table, rule.items(table))


def test_a_benchmark_of_videos_asks_about_the_file_that_its_data_names(tmp_path):
    row = {"id": 7, "ground_truth": "4", "question_type": "object_counting", "question": "How many <video>s?"}
    row |= {"dataset": "d", "scene_name": "s", "options": None}
    rule, table = VsiBench(), Table("t", "t", list(row), [Row(row, "row 1 of t", 1)], tmp_path)
    with pytest.raises(ValueError, match=r"problem 7 \(row 1 of t\): video .*s\.mp4' does not exist.*image_folder"):
        problems(rule, table, rule.items(table))
    (tmp_path / "d").mkdir()
    encode(tmp_path / "d" / "s.mp4")
    (problem,) = problems(rule, table, rule.items(table))
    assert [video.source for video in problem.videos] == [tmp_path / "d" / "s.mp4"]
    lines = ["<video>These are frames of a video.", "How many s?"]
    lines.append("Please answer the question using a single word or phrase.")
    assert (problem.question, problem.images) == ("\n".join(lines), ())


def test_an_empty_table_is_refused(tmp_path):
    (tmp_path / "d.json").write_text("[]")
    with pytest.raises(ValueError, match=r"d\.json holds no problems"):
        OfficialRows(path=str(tmp_path / "d.json")).table(MathVista())


def local_rule() -> LocalProblems:
    return LocalProblems(reward=WeightedReward(parts={"exact": ExactAnswer()}), instruction="Go.")


def test_a_local_file_is_asked_with_each_picture_at_its_mark(tmp_path):
    """As `data=jsonl` asks it; without marks, and with all of them in front, pictures stand in front."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (30, 30)).save(tmp_path / name)
    questions = ["Is <image> as <image>?", "<image><image>\nAlike?", "Alike?", "Alike? <image> <image>"]
    rows = [
        {
            "id": str(number),
            "problem": question,
            "answer": "yes",
            "choices": ["yes", "no"],
            "images": ["a.png", "b.png"],
        }
        for number, question in enumerate(questions)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained = TabularProblems(path=str(tmp_path / "p.jsonl"), test_fraction=1).load("test")
    rule = local_rule()
    table = rows_of(OfficialRows(path=str(tmp_path / "p.jsonl")), rule)
    made = problems(rule, table, rule.items(table))
    assert [one.images for one in made] == [one.images for one in trained]
    assert [one.question for one in made] == [
        one.question.replace("<image>\nAlike", "<image>Alike") + " Go." for one in trained
    ]  # fmt: skip
    assert made[0].question.startswith("Is <image> as <image>?\nChoices: (A) yes (B) no")
    extra = Row({**rows[0], "images": ["a.png"]}, "row 1 of t", 1)
    table = Table("t", "t", list(rows[0]), [extra], tmp_path)
    with pytest.raises(ValueError, match="2 <image> marks for 1 image: write one mark for each image"):
        problems(rule, table, rule.items(table))


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"problem": [{"role": "user", "content": "How many?"}]}, "a conversation"),
        ({"problem": "How many?", "videos": ["a.mp4"]}, "about a video"),
        ({"problem": "<video>How many?", "videos": ["a.mp4"]}, "about a video"),
    ],
)
def test_what_a_local_file_can_not_ask_is_refused_and_recorded_answers_to_it_are_scored(tmp_path, more, what):
    """The conversation was asked as Python writes a list, and the video's question without the video."""
    row, rule = {"id": "p", "answer": "3"} | more, local_rule()
    table = Table("t", "t", list(row), [Row(row, "row 1 of t", 1)], tmp_path)
    with pytest.raises(ValueError, match=rf"^row 1 of t: problem 'p' is {what}, .*data=jsonl .*without a benchmark$"):
        problems(rule, table, rule.items(table))
    (item,) = rule.items(table)
    assert rule.score([(item, Answer("p", response="\\boxed{3}"))])[0].score == 1
    assert "videos" in rule.read_columns()

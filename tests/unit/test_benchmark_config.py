"""The benchmarks' YAMLs say what their classes do, compose alone and together, and lead to a prompt."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from atrl.benchmarks.base import Benchmark
from atrl.benchmarks.generate import problems
from atrl.benchmarks.mathvista import MathVista
from atrl.benchmarks.mmmu import MMMU
from atrl.benchmarks.source import OfficialRows, rows_of
from atrl.benchmarks.vsibench import VsiBench
from atrl.config import check_config
from atrl.data.geometry import GeometryProblems
from atrl.data.rows import Row
from atrl.data.tables import Table
from atrl.evaluation.settings import EvaluateSettings
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

"""Problems from JSONL, JSON, Parquet and Hugging Face datasets: what loads, what is refused, and splits."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from omegaconf import OmegaConf
from problem_files import add_pictures, png, row, write_jsonl
from video_files import encode

from atrl.data.base import ProblemSource
from atrl.data.images import open_image
from atrl.data.tabular import HubProblems, TabularProblems
from atrl.types import Video

CONFIGS = Path(__file__).parents[2] / "conf/data"


@pytest.fixture
def folder(tmp_path) -> Path:
    return add_pictures(tmp_path)


# Files


def test_json_list(folder):
    path = folder / "problems.json"
    path.write_text(json.dumps([row(0), row(1)], indent=1))
    assert [p.id for p in TabularProblems(path=str(path), test_fraction=0).load("train")] == ["p0", "p1"]


def test_jsonl_with_blank_lines_byte_order_mark_and_odd_separators(folder):
    path = folder / "problems.jsonl"
    text = json.dumps(row(0, problem="<image>a\u2028b"), ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\n" + json.dumps(row(1)).encode())
    problems = TabularProblems(path=str(path), test_fraction=0).load("train")
    assert [problem.question for problem in problems] == ["<image>a\u2028b", "<image>How many?"]


def test_parquet_with_paths_and_numbers(folder):
    path = folder / "problems.parquet"
    columns = {"problem": ["<image>?", "?"], "answer": [1.5, 2.0], "images": [["a.png"], None]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    first, second = TabularProblems(path=str(path), test_fraction=0).load("train")
    assert (first.id, first.answer, first.images) == ("problems:1", "1.5", (folder / "a.png",))
    assert (second.id, second.answer, second.images) == ("problems:2", "2.0", ())


def test_parquet_with_pictures_inside(folder):
    """As Hugging Face stores them: bytes, or a path where there are none; also one bare value, not a list."""
    path = folder / "problems.parquet"
    images = [[{"bytes": png("lime"), "path": "gone.png"}, {"bytes": None, "path": "sub/b.png"}]]
    columns = {"problem": ["<image><image>?"], "answer": ["x"], "images": images, "raw": [png("blue")]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    (problem,) = TabularProblems(path=str(path), test_fraction=0).load("train")
    assert open_image(problem.images[0], problem_id="p").getpixel((0, 0)) == (0, 255, 0)
    assert problem.images[1] == folder / "sub/b.png"

    options = {"images_column": "raw", "problem_column": "answer", "test_fraction": 0}
    (bare,) = TabularProblems(path=str(path), **options).load("train")
    assert bare.question == "<image>x"
    assert open_image(bare.images[0], problem_id="p").getpixel((0, 0)) == (0, 0, 255)


def test_parquet_with_videos_inside(folder):
    """Bytes and paths as Hugging Face stores them; frames with a rate, of which a row may have none."""
    data = encode(folder / "film.mp4", 4).read_bytes()
    path = folder / "problems.parquet"
    columns = {
        "problem": ["<video><video>?", "?"],
        "answer": ["x", "y"],
        "videos": [[{"bytes": data, "path": "gone.mp4"}, {"bytes": None, "path": "film.mp4"}], None],
        "clips": [{"frames": [{"bytes": png("lime"), "path": None}], "fps": 2.0}, None],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    first, second = TabularProblems(path=str(path), test_fraction=0).load("train")
    assert first.videos == (Video(data), Video(folder / "film.mp4")) and second.videos == ()
    options = {"videos_column": "clips", "problem_column": "answer"}
    first, second = TabularProblems(path=str(path), test_fraction=0, **options).load("train")
    (video,) = first.videos
    assert video.fps == 2.0 and open_image(video.source[0], problem_id="p").getpixel((0, 0)) == (0, 255, 0)
    assert (first.question, second.question) == ("<video>x", "y")


def test_parquet_with_a_broken_picture_inside(folder):
    path = folder / "problems.parquet"
    columns = {"id": ["p5"], "problem": ["?"], "answer": ["x"], "images": [[{"bytes": b"no", "path": None}]]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(ValueError, match="problem p5: an image in the data itself can't be read"):
        TabularProblems(path=str(path)).load("train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", r"data\.path: .*a\.jsonl is an empty file"),
        ("a.jsonl", b"\n\n", r"data\.path: .*a\.jsonl holds no problems"),
        ("a.json", b"[]", "holds no problems"),
        ("a.jsonl", b'{"id": 1}\n{"id": \n', r"line 2 of a\.jsonl: broken JSON"),
        ("a.jsonl", b'{"id": 1}\n{"id": "\xff"}\n', r"line 2 of a\.jsonl: broken JSON \(.*utf-8"),
        ("a.jsonl", b"[" * 100_000, r"line 1 of a\.jsonl: broken JSON"),
        ("a.jsonl", b"[1]\n", r"line 1 of a\.jsonl: a problem must be a JSON object, not a list.*\.json"),
        ("a.json", b'[\n{"id": 1},\n{"id" 2}]', r"line 3 of a\.json: broken JSON at character 7"),
        ("a.json", b'{"id": 1}\n{"id": 2}', r"line 2 of a\.json: broken JSON.*name it \.jsonl"),
        ("a.json", b'{"id": 1}', r"a\.json holds an object: write a list of objects"),
        ("a.json", b"[1]", r"row 1 of a\.json: a problem must be a JSON object, not 1"),
        ("a.parquet", b"PAR1 no", r"a\.parquet is no sound Parquet file"),
        ("a.csv", b"id,problem", r"has the suffix '\.csv', which is none of \.jsonl, \.json, \.parquet"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        TabularProblems(path=str(tmp_path / name)).load("train")
    assert "\n" not in str(caught.value)


def test_missing_file_names_the_nearest_sibling(folder):
    write_jsonl(folder, row())
    with pytest.raises(
        ValueError, match=r"data\.path: .*problem\.jsonl does not exist, did you mean 'problems\.jsonl'\?"
    ):
        TabularProblems(path=str(folder / "problem.jsonl")).load("train")
    with pytest.raises(ValueError, match=r"data\.test_path: .*nowhere/x\.jsonl does not exist: correct the path"):
        TabularProblems(path="unused.jsonl", test_path=str(folder / "nowhere/x.jsonl")).load("test")


def test_file_that_may_not_be_read(folder, monkeypatch):
    path = write_jsonl(folder, row())

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=r"data\.path: .*problems\.jsonl can't be read \(.*Permission denied\)"):
        TabularProblems(path=path).load("train")


def test_folder_instead_of_a_file_lists_what_it_has(folder):
    write_jsonl(folder, row())
    with pytest.raises(ValueError, match=r"is a folder: name a file in it \(problems\.jsonl\)"):
        TabularProblems(path=str(folder)).load("train")


# Splits


def split_ids(source) -> dict[str, set[str]]:
    return {split: {problem.id for problem in source.load(split)} for split in ("train", "selection", "test")}


def test_cut_is_disjoint_complete_and_free_of_order(folder):
    rows = [row(index) for index in range(200)]
    options = {"test_fraction": 0.2, "selection_fraction": 0.1}
    ids = split_ids(TabularProblems(path=write_jsonl(folder, *rows), **options))
    assert set().union(*ids.values()) == {values["id"] for values in rows}
    assert sum(map(len, ids.values())) == 200
    assert 20 <= len(ids["test"]) <= 60  # binomial(200, 0.2): 40 ± 5.7
    backwards = write_jsonl(folder, *rows[::-1], name="backwards.jsonl")
    assert split_ids(TabularProblems(path=backwards, **options)) == ids
    assert split_ids(TabularProblems(path=backwards, **options, seed=1)) != ids


def test_growing_data_moves_nothing(folder):
    small = TabularProblems(path=write_jsonl(folder, *map(row, range(60)), name="small.jsonl"))
    large = TabularProblems(path=write_jsonl(folder, *map(row, range(90)), name="large.jsonl"))
    for split in ("train", "test"):
        assert {p.id for p in small.load(split)} <= {p.id for p in large.load(split)}


def test_without_ids_the_content_decides(folder):
    rows = [{"problem": f"<image>{index}?", "answer": index, "images": ["a.png"]} for index in range(40)]
    there = TabularProblems(path=write_jsonl(folder, *rows))
    back = TabularProblems(path=write_jsonl(folder, *rows[::-1], name="back.jsonl"))
    questions = {p.question for p in there.load("test")}
    assert questions and questions == {p.question for p in back.load("test")}


def test_files_of_their_own_replace_the_cut(folder):
    train = write_jsonl(folder, *map(row, range(30)))
    test = write_jsonl(folder, row(100), row(101), name="test.jsonl")
    ids = split_ids(TabularProblems(path=train, test_path=test, selection_fraction=0.2))
    assert ids["test"] == {"p100", "p101"}
    assert len(ids["train"] | ids["selection"]) == 30 and not ids["train"] & ids["selection"]


def test_limit_takes_a_seeded_subset_of_each_split(folder):
    path = write_jsonl(folder, *map(row, range(60)))
    ids = [p.id for p in TabularProblems(path=path, limit=5).load("train")]
    everything = [p.id for p in TabularProblems(path=path).load("train")]
    assert len(ids) == 5 and ids == [problem_id for problem_id in everything if problem_id in ids]
    assert ids != everything[:5]
    assert ids != [p.id for p in TabularProblems(path=path, limit=5, seed=1).load("train")]


def test_empty_splits_name_the_remedy(folder):
    path = write_jsonl(folder, *map(row, range(3)))
    with pytest.raises(
        ValueError, match=r"no selection split with data\.selection_fraction=0\.0 .*data\.selection_path"
    ):
        TabularProblems(path=path).load("selection")
    with pytest.raises(ValueError, match=r"no train split: lower data\.test_fraction"):
        TabularProblems(path=path, test_fraction=1).load("train")
    assert len(TabularProblems(path=path, test_fraction=1).load("test")) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_fraction": 1.2}, r"^data\.test_fraction must be a number in \[0, 1\], got 1\.2"),
        ({"selection_fraction": "half"}, r"^data\.selection_fraction must be a number"),
        (
            {"test_fraction": 0.7, "selection_fraction": 0.7},
            r"^data\.test_fraction=0\.7 and .* sum to more than 1",
        ),
        ({"limit": 0}, r"^data\.limit must be 1 or more"),
        ({"answer_column": ""}, r"^data\.answer_column is ''"),
        ({"choice_answer": "number"}, r"^data\.choice_answer must be letter or text, got 'number'"),
        ({"image_folder": "no/such/folder"}, r"^data\.image_folder no/such/folder is not a folder"),
        ({"path": ""}, r"^data\.path is empty"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        TabularProblems(**{"path": "x.jsonl", **options})


# Hugging Face datasets


@pytest.fixture
def dataset(tmp_path) -> dict:
    """Options of `HubProblems` for a local dataset with 30 rows in `train` and 2 in `validation`."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    features = Features({"problem": Value("string"), "answer": Value("int64"), "images": List(ImageFeature())})
    (tmp_path / "set").mkdir()
    for split, size in (("train", 30), ("validation", 2)):
        picture = {"bytes": png("blue"), "path": None}
        columns = {
            "problem": [f"{i}?" for i in range(size)],
            "answer": list(range(size)),
            "images": [[picture]] * size,
        }
        Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / f"set/{split}.parquet"))
    return {"name": str(tmp_path / "set"), "cache_dir": str(tmp_path / "cache")}


def test_hub_dataset_with_its_own_test_split(dataset):
    source = HubProblems(**dataset, test_split="validation", selection_fraction=0.2)
    first, second = source.load("test")
    assert (first.id, first.question, first.answer) == ("validation:1", "<image>0?", "0")
    assert second.id == "validation:2"
    assert open_image(first.images[0], problem_id="p").getpixel((1, 1)) == (0, 0, 255)
    assert len(source.load("train")) + len(source.load("selection")) == 30


def test_hub_dataset_that_is_cut(dataset):
    source = HubProblems(**dataset)
    train, test = source.load("train"), source.load("test")
    assert len(train) + len(test) == 30 and not {p.id for p in train} & {p.id for p in test}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"train_split": "trian"},
            r"^data\.train_split: .*no split 'trian', did you mean 'train'\?.*train, validation",
        ),
        ({"config": "hard"}, r"can't be loaded \(ValueError: .*'hard'.*: check data\.name, data\.config"),
        ({"name": "./no/such/folder"}, "no/such/folder"),
        (
            {"answer_column": "anwser"},
            r"^data\.answer_column: .*\(train\) has no column 'anwser', did you mean 'answer'\?",
        ),
        ({"name": ""}, r"^data\.name and data\.train_split must not be empty"),
    ],
)
def test_hub_errors(dataset, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        HubProblems(**{**dataset, **options}).load("train")
    assert "\n" not in str(caught.value)


# Configuration


@pytest.mark.parametrize(("file", "source"), [("jsonl", TabularProblems), ("hub", HubProblems)])
def test_yaml_holds_the_defaults(file, source):
    config = OmegaConf.load(CONFIGS / f"{file}.yaml")
    required = "path" if file == "jsonl" else "name"
    assert config.pop("_target_") == f"atrl.data.tabular.{source.__name__}"
    assert OmegaConf.is_missing(config, required)
    parameters = inspect.signature(source).parameters
    given_values = OmegaConf.to_container(config)
    assert {**given_values, required: inspect.Parameter.empty} == {
        name: parameter.default for name, parameter in parameters.items()
    }
    made = source(**{**given_values, required: "x"})
    assert isinstance(made, ProblemSource) and made.name == "x" and made.baseline() is None

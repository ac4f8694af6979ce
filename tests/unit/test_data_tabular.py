"""Problems from JSONL, JSON, Parquet and Hugging Face datasets: what loads, what is refused, and splits."""

from __future__ import annotations

import inspect
import json
from io import BytesIO
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from atrl.data.base import ProblemSource, assign_split, seeded_subset, uniform_hash
from atrl.data.images import open_image
from atrl.data.rows import Row, RowFormat
from atrl.data.tabular import HubProblems, TabularProblems
from atrl.types import Problem

CONFIGS = Path(__file__).parents[2] / "conf/data"


def png(colour: str = "red") -> bytes:
    stream = BytesIO()
    Image.new("RGB", (2, 2), colour).save(stream, "PNG")
    return stream.getvalue()


def row(index: int = 0, **changes) -> dict:
    return {"id": f"p{index}", "problem": "<image>How many?", "answer": "2", "images": ["a.png"], **changes}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with two pictures, `a.png` and `sub/b.png`."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(png("red"))
    (tmp_path / "sub/b.png").write_bytes(png("blue"))
    return tmp_path


def write_jsonl(folder: Path, *rows: dict, name: str = "problems.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(values) + "\n" for values in rows))
    return str(path)


def load(folder: Path, *rows: dict, **options) -> list[Problem]:
    """All of `rows`, through a JSONL file."""
    return list(
        TabularProblems(path=write_jsonl(folder, *rows), **{"test_fraction": 0, **options}).load("train")
    )


def refused(folder: Path, *rows: dict, match: str, **options) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        load(folder, *rows, **options)
    assert "\n" not in str(caught.value)


# Rows


def test_plain_row(folder):
    (problem,) = load(folder, row())
    assert problem == Problem(id="p0", question="<image>How many?", answer="2", images=(folder / "a.png",))


def test_other_column_names(folder):
    values = {"uid": 7, "q": "<image>?", "gold": "x", "picture": "sub/b.png"}
    names = {"problem_column": "q", "answer_column": "gold", "images_column": "picture", "id_column": "uid"}
    (problem,) = load(folder, values, **names)
    assert problem == Problem(id="7", question="<image>?", answer="x", images=(folder / "sub/b.png",))


def test_several_images_keep_their_order_and_absolute_paths_work(folder):
    absolute = str(folder / "a.png")
    (problem,) = load(folder, row(problem="<image> or <image>?", images=["sub/b.png", absolute]))
    assert problem.images == (folder / "sub/b.png", folder / "a.png")


def test_image_folder_overrides_the_files_folder(folder):
    (problem,) = load(folder, row(images="b.png"), image_folder=str(folder / "sub"))
    assert problem.images == (folder / "sub/b.png",)


@pytest.mark.parametrize(
    ("images", "question"), [(["a.png"], "<image>Q"), (["a.png"] * 2, "<image><image>Q"), ([], "Q")]
)
def test_marks_are_put_in_front_where_there_are_none(folder, images, question):
    (problem,) = load(folder, row(problem="Q", images=images))
    assert problem.question == question


@pytest.mark.parametrize(
    ("text", "images", "counts"),
    [
        ("<image>?", ["a.png", "a.png"], "1 <image> mark for 2 images"),
        ("<image><image>?", ["a.png"], "2 <image> marks for 1 image:"),
        ("<image>?", None, "1 <image> mark for 0 images"),
    ],
)
def test_marks_and_images_must_agree(folder, text, images, counts):
    refused(
        folder,
        row(3, problem=text, images=images),
        match=rf"problem p3 \(line 1 of problems\.jsonl\).*{counts}",
    )


@pytest.mark.parametrize(
    ("stored", "answer"), [(41, "41"), (0.5, "0.5"), (28.0, "28.0"), (True, "true"), (" 7\n", "7"), (0, "0")]
)
def test_answers_become_text(folder, stored, answer):
    assert load(folder, row(answer=stored))[0].answer == answer


@pytest.mark.parametrize("stored", [None, "", "  ", float("nan"), ["2"], {"a": 1}, "\ud800"])
def test_unusable_answers_name_the_problem(folder, stored):
    refused(folder, row(), row(9, answer=stored), match=r"problem p9 \(line 2 of problems\.jsonl\): answer ")


def test_missing_answer_in_one_row(folder):
    values = row(1)
    del values["answer"]
    refused(folder, row(), values, match=r"problem p1 .*answer is missing")


def test_image_errors_name_problem_and_path(folder):
    refused(
        folder,
        row(images=["sub/c.png"]),
        match=r"problem p0 .*sub/c\.png.* does not exist, did you mean 'b\.png'\?",
    )
    refused(folder, row(images="https://example.org/a.png"), match=r"problem p0 .*example.* is not a file")
    refused(folder, row(images=["x" * 5000]), match="problem p0 .*does not exist")
    refused(folder, row(images=[5]), match="problem p0 .*5 is not an image")
    refused(folder, row(images=5), match="problem p0 .*images must be an image or a list")
    (folder / "a.png").write_bytes(png()[:-30])
    refused(folder, row(), match=r"problem p0: image .*a\.png can't be read")


def test_relative_path_without_a_folder_to_start_from():
    values = Row(row(), place="row 1 of owner/set (train)", number=1)
    with pytest.raises(ValueError, match=r"problem p0 .*'a\.png' is a relative path: set data\.image_folder"):
        RowFormat().to_problem(values, "p0", folder=None)


# Choices


def test_choices_are_lettered_and_the_answer_is_the_letter(folder):
    (problem,) = load(folder, row(answer="13", choices=["12", "13", 14]))
    assert problem.question == (
        "<image>How many?\nChoices: (A) 12 (B) 13 (C) 14\nAnswer with the letter of the right choice."
    )
    assert problem.answer == "B"


def test_choices_answered_by_text(folder):
    (problem,) = load(folder, row(answer="C", choices=["12", "13", "14"]), choice_answer="text")
    assert problem.answer == "14"
    assert problem.question.endswith("Answer with the text of the right choice, not with its letter.")


def test_letter_is_accepted_as_answer_and_as_option(folder):
    assert load(folder, row(answer="B", choices=["12", "13"]))[0].answer == "B"
    assert load(folder, row(answer="B", choices=["A", "B"]))[0].answer == "B"


@pytest.mark.parametrize("choices", [None, []])
def test_no_choices_no_change(folder, choices):
    assert load(folder, row(choices=choices))[0].question == "<image>How many?"


def test_choices_can_be_switched_off(folder):
    assert load(folder, row(answer="9", choices=["1", "2"]), choices_column=None)[0].answer == "9"


@pytest.mark.parametrize(
    ("answer", "choices", "message"),
    [
        ("15", ["12", "13"], "'15' is none of its options"),
        ("D", ["12", "13"], "'D' is none of its options"),
        ("A", ["B", "A"], "'A' could be any of its options A, B"),
        ("12", ["12", "12"], "'12' could be any of its options A, B"),
        ("12", "12, 13", "choices must be a list"),
        ("12", [str(number) for number in range(12, 39)], "up to 26 options"),
        ("12", ["12", None], "an option in choices is missing"),
    ],
)
def test_answers_must_fit_the_choices(folder, answer, choices, message):
    refused(folder, row(answer=answer, choices=choices), match=f"problem p0 .*{message}")


# Columns and ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"problem_column": "problm"},
            r"^data\.problem_column: .*no column 'problm', did you mean 'problem'\?",
        ),
        (
            {"answer_column": "gold"},
            r"^data\.answer_column: .*'gold'\. Its columns are id, problem, answer, images",
        ),
        (
            {"images_column": "image"},
            r"^data\.images_column: .*'image', did you mean 'images'\?.*set it to null",
        ),
        ({"id_column": "idd"}, r"^data\.id_column: .*'idd', did you mean 'id'\?"),
        ({"choices_column": "options"}, r"^data\.choices_column: .*no column 'options'"),
    ],
)
def test_wrong_column_names(folder, options, message):
    refused(folder, row(), match=message, **options)


def test_images_column_that_does_not_exist_would_train_blind(folder):
    values = row(problem="?")
    del values["images"]
    refused(folder, values, match="no column 'images'")
    assert load(folder, values, images_column=None)[0].images == ()


def test_without_ids_problems_are_named_by_file_and_line(folder):
    rows = [{key: value for key, value in row(answer=n).items() if key != "id"} for n in range(2)]
    assert [problem.id for problem in load(folder, *rows)] == ["problems:1", "problems:2"]
    assert [problem.id for problem in load(folder, row(), id_column=None)] == ["problems:1"]


def test_bad_ids(folder):
    refused(
        folder, row(1), row(2), row(1), match=r"line 3 of .*'p1' is that of line 1 of problems\.jsonl too"
    )
    refused(
        folder, row(), {**row(), "id": None}, match="line 2 of problems.jsonl: id is None, which is no id"
    )
    without = {key: value for key, value in row().items() if key != "id"}
    refused(folder, row(), without, match="line 2 of problems.jsonl: id is None")
    refused(folder, row(id=""), match="line 1 .*id is '', which is no id")
    refused(folder, row(id=1.5), match="line 1 .*id is 1.5")
    refused(folder, row(id="a\nb"), match="line 1 .*id is .*, which is no id")


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
    with pytest.raises(
        ValueError, match=r"data\.test_path: .*nowhere/x\.jsonl does not exist: correct the path"
    ):
        TabularProblems(path="unused.jsonl", test_path=str(folder / "nowhere/x.jsonl")).load("test")


def test_file_that_may_not_be_read(folder, monkeypatch):
    path = write_jsonl(folder, row())

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        ValueError, match=r"data\.path: .*problems\.jsonl can't be read \(.*Permission denied\)"
    ):
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


@settings(deadline=None)
@given(st.text(), st.integers())
def test_uniform_hash_is_in_the_unit_interval(key, seed):
    assert 0 <= uniform_hash(key, seed) < 1


def test_uniform_hash_is_the_documented_one():
    """``printf 0/a | sha256sum`` begins with d3216b8d."""
    assert uniform_hash("a", 0) == pytest.approx(0xD3216B8D / 2**32, abs=2**-32)


def test_raising_the_selection_fraction_leaves_test_alone():
    keys = [str(index) for index in range(1000)]

    def of(selection: float) -> list[str]:
        return [assign_split(key, seed=0, selection_fraction=selection, test_fraction=0.3) for key in keys]

    assert [split == "test" for split in of(0.0)] == [split == "test" for split in of(0.5)]
    assert abs(of(0.5).count("selection") - 500) < 64  # 4 standard deviations of binomial(1000, 0.5)


def test_seeded_subset_is_nested():
    problems = [Problem(id=str(index), question="?", answer="1") for index in range(50)]
    three, ten = (seeded_subset(problems, limit, seed=0) for limit in (3, 10))
    assert [p for p in ten if p in three] == three
    assert seeded_subset(problems, None, seed=0) == seeded_subset(problems, 99, seed=0) == problems


# Hugging Face datasets


@pytest.fixture
def dataset(tmp_path) -> dict:
    """Options of `HubProblems` for a local dataset with 30 rows in `train` and 2 in `validation`."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    features = Features(
        {"problem": Value("string"), "answer": Value("int64"), "images": List(ImageFeature())}
    )
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

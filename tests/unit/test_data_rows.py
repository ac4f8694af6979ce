"""One row as a problem: marks, answers, choices, columns and ids, and the rows that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from problem_files import add_pictures, png, row, write_jsonl
from video_files import encode

from atrl.data.rows import Row, RowFormat
from atrl.data.tabular import TabularProblems
from atrl.types import Problem, Video


@pytest.fixture
def folder(tmp_path) -> Path:
    return add_pictures(tmp_path)


def load(folder: Path, *rows: dict, **options) -> list[Problem]:
    """All of `rows`, through a JSONL file."""
    return list(TabularProblems(path=write_jsonl(folder, *rows), **{"test_fraction": 0, **options}).load("train"))


def assert_refused(folder: Path, *rows: dict, match: str, **options) -> None:
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
    assert_refused(
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
    assert_refused(folder, row(), row(9, answer=stored), match=r"problem p9 \(line 2 of problems\.jsonl\): answer ")


def test_missing_answer_in_one_row(folder):
    values = row(1)
    del values["answer"]
    assert_refused(folder, row(), values, match=r"problem p1 .*answer is missing")


def test_image_errors_name_problem_and_path(folder):
    assert_refused(
        folder,
        row(images=["sub/c.png"]),
        match=r"problem p0 .*sub/c\.png.* does not exist, did you mean 'b\.png'\?",
    )
    assert_refused(folder, row(images="https://example.org/a.png"), match=r"problem p0 .*example.* is not a file")
    assert_refused(folder, row(images=["x" * 5000]), match="problem p0 .*does not exist")
    assert_refused(folder, row(images=[5]), match="problem p0 .*5 is not an image")
    assert_refused(folder, row(images=5), match="problem p0 .*images must be an image or a list")
    (folder / "a.png").write_bytes(png()[:-30])
    assert_refused(folder, row(), match=r"problem p0: image .*a\.png can't be read")


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
    assert_refused(folder, row(answer=answer, choices=choices), match=f"problem p0 .*{message}")


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
    assert_refused(folder, row(), match=message, **options)


def test_images_column_that_does_not_exist_would_train_blind(folder):
    values = row(problem="?")
    del values["images"]
    assert_refused(folder, values, match="no column 'images'")
    assert load(folder, values, images_column=None)[0].images == ()


def test_without_ids_problems_are_named_by_file_and_line(folder):
    rows = [{key: value for key, value in row(answer=n).items() if key != "id"} for n in range(2)]
    assert [problem.id for problem in load(folder, *rows)] == ["problems:1", "problems:2"]
    assert [problem.id for problem in load(folder, row(), id_column=None)] == ["problems:1"]


def test_bad_ids(folder):
    assert_refused(folder, row(1), row(2), row(1), match=r"line 3 of .*'p1' is that of line 1 of problems\.jsonl too")
    assert_refused(folder, row(), {**row(), "id": None}, match="line 2 of problems.jsonl: id is None, which is no id")
    without = {key: value for key, value in row().items() if key != "id"}
    assert_refused(folder, row(), without, match="line 2 of problems.jsonl: id is None")
    assert_refused(folder, row(id=""), match="line 1 .*id is '', which is no id")
    assert_refused(folder, row(id=1.5), match="line 1 .*id is 1.5")
    assert_refused(folder, row(id="a\nb"), match="line 1 .*id is .*, which is no id")


# Videos


@pytest.fixture
def film(folder) -> Path:
    return encode(folder / "film.mp4", 4)


def video_row(**changes) -> dict:
    return {"id": "p0", "problem": "<video>What moves?", "answer": "A", "videos": "film.mp4", **changes}


def test_a_video_file_and_no_column_of_images(folder, film):
    (problem,) = load(folder, video_row())
    assert problem == Problem(id="p0", question="<video>What moves?", answer="A", videos=(Video(film),))


def test_several_videos_and_images_in_any_order(folder, film):
    question = "<video> or <image> or <video>?"
    (problem,) = load(folder, video_row(problem=question, videos=["film.mp4", str(film)], images=["a.png"]))
    assert problem.videos == (Video(film), Video(film)) and problem.images == (folder / "a.png",)
    assert problem.question == question


@pytest.mark.parametrize(
    "videos",
    [
        {"frames": ["a.png", "sub/b.png"], "fps": 2},
        [{"frames": ["a.png", "sub/b.png"], "fps": 2.0}],
    ],
)
def test_frames_with_their_rate(folder, videos):
    (problem,) = load(folder, video_row(videos=videos))
    assert problem.videos == (Video((folder / "a.png", folder / "sub/b.png"), 2.0),)


def test_frames_by_the_rate_of_the_config(folder):
    values = video_row(videos=[["a.png", "sub/b.png"]])
    assert load(folder, values, frame_rate=1.5)[0].videos == (Video((folder / "a.png", folder / "sub/b.png"), 1.5),)
    both = video_row(videos={"frames": ["a.png"], "fps": 4})
    assert load(folder, both, frame_rate=1.5)[0].videos[0].fps == 4.0
    assert_refused(folder, values, match=r"problem p0 .*needs its rate .* got None: write .* or set data\.frame_rate")


def test_video_marks_are_put_in_front_where_there_are_none(folder, film):
    (problem,) = load(folder, video_row(problem="What?", videos=["film.mp4"] * 2))
    assert problem.question == "<video><video>What?"
    (problem,) = load(folder, video_row(problem="See <image>.", images=["a.png"]))
    assert problem.question == "<video>See <image>."


def test_video_marks_and_videos_must_agree(folder, film):
    assert_refused(
        folder, video_row(problem="<video><video>"), match="problem p0 .* 2 <video> marks for 1 video: write one mark"
    )
    assert_refused(folder, video_row(videos=None), match="problem p0 .* 1 <video> mark for 0 videos")


def test_other_names_of_the_column(folder, film):
    values = video_row(clip="film.mp4")
    del values["videos"]
    (problem,) = load(folder, values, videos_column="clip", images_column=None)
    assert problem.videos == (Video(film),)
    assert_refused(folder, values, match="no column 'images'")
    assert_refused(
        folder, values, videos_column="clips", images_column=None, match=r"^data\.videos_column: .*did you mean 'clip'"
    )
    assert load(folder, row(), videos_column=None)[0].videos == ()


@pytest.mark.parametrize(
    ("videos", "match"),
    [
        ("gone.mp4", r"problem p0 .*gone\.mp4' does not exist"),
        ("filn.mp4", r"problem p0 .*does not exist, did you mean 'film\.mp4'"),
        ("https://example.org/a.mp4", "problem p0 .*is not a file"),
        (["a.png", "sub/b.png"], r"problem p0 .*'a\.png' is a picture and not a video: write a list of frames as"),
        (5, "problem p0 .*videos must be a video or a list of videos, got 5"),
        ([5], "problem p0 .*5 is not a video: give a path, the bytes of a video, or a list of frames"),
        ([[]], r"problem p0 .*frames must be a list of pictures, got \[\]"),
        ({"frames": "a.png", "fps": 1}, "problem p0 .*frames must be a list of pictures"),
        ({"frames": ["a.png"], "fps": 0}, "problem p0 .*needs its rate in frames per second, got 0"),
        ({"frames": ["a.png"], "fps": "2"}, "problem p0 .*needs its rate"),
        ({"frames": ["gone.png"], "fps": 2}, r"problem p0 .*gone\.png' does not exist"),
        ("broken.mp4", r"problem p0: video .*broken\.mp4 can't be read"),
        ("empty.mp4", r"problem p0: video .*empty\.mp4 is an empty file"),
    ],
)
def test_unusable_videos_are_refused(folder, film, videos, match):
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "empty.mp4").touch()
    assert_refused(folder, video_row(videos=videos), match=match)


def test_a_rate_out_of_range_is_refused(folder):
    with pytest.raises(ValueError, match=r"data\.frame_rate must be above 0 frames per second, or null, got 0"):
        RowFormat(frame_rate=0)

"""`evaluate.py benchmark=…` as a user runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from atrl.models.load import BUNDLED
from tests.integration.conftest import needs_vllm
from tests.integration.test_command_line import run
from tests.unit.video_files import encode

ROWS = [
    {"pid": str(n), "question_type": "free_form", "answer_type": "integer", "answer": "3", "query": "How many?"}
    for n in range(6)
]
RESPONSES = ["So the answer is 3.", "4", "3", "none", r"\boxed{3}", "9**9**9"]


SILENT = ("judge=openai", "judge.url=http://127.0.0.1:9/v1", "judge.retries=0", "extract_again=true")
"""A judge that nobody is at home for."""


def rooms(folder: Path, *, frames: int = 0) -> str:
    """Two questions of VSI-Bench, and with `frames` their videos."""
    rows = [
        {"id": n, "question_type": "object_counting", "question": "How many?", "ground_truth": "4", "options": None}
        | {"dataset": "rooms", "scene_name": f"s{n}"}
        for n in range(2)
    ]
    if frames:
        (folder / "rooms").mkdir()
        for number, row in enumerate(rows):
            encode(folder / "rooms" / f"{row['scene_name']}.mp4", frames + number)
    return write(folder / "vsi.jsonl", rows)


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_recorded_answers_are_scored_without_a_model_and_compared(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", ROWS)
    given = write(tmp_path / "a.jsonl", [{"id": str(n), "response": text} for n, text in enumerate(RESPONSES)])
    read = write(tmp_path / "b.jsonl", [{"id": str(n), "extraction": "3"} for n in range(6)])
    for name, answers in (("one", given), ("two", read)):
        arguments = ("benchmark=mathvista", f"predictions={answers}", f"data.path={data}", f"hydra.run.dir={name}")
        done = run("evaluate.py", *arguments, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "one" / "evaluation.json").read_text())
    assert result["benchmark"] == "mathvista"
    assert (result["samples"], result["unparseable"]) == (6, 1)
    assert result["headline"]["name"] == "accuracy"
    assert result["headline"]["value"] == 50.0
    records = [json.loads(line) for line in (tmp_path / "one" / "records.jsonl").read_text().splitlines()]
    assert [record["correct"] for record in records] == [True, False, True, False, True, False]
    assert set(records[0]) >= {"id", "extraction", "prediction", "gold", "correct"}

    done = run("evaluate.py", "compare=[one,two]", "hydra.run.dir=both", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "McNemar: 3 gained, 0 lost, p = 0.25" in done.stdout
    assert json.loads((tmp_path / "both" / "comparison.json").read_text())["difference"] == 50.0


def test_errors_are_one_line(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", ROWS)
    answers = write(tmp_path / "a.jsonl", [{"id": "0", "response": "It is 3"}])  # not yet an extraction
    (tmp_path / "broken").mkdir()
    broken = rooms(tmp_path / "broken", frames=4)
    (tmp_path / "broken" / "rooms" / "s1.mp4").write_bytes(b"no video")
    unloadable = tmp_path / "unloadable"  # without weights: what is said of data is said before a model loads
    shutil.copytree(BUNDLED["tiny"], unloadable, ignore=shutil.ignore_patterns("*.safetensors"))
    for arguments, message in (
        (["benchmark=mathvista", f"predictions={answers}", f"data.path={data}"], "5 of 6 problems have no answer in"),
        (["benchmark=mathvsta", f"predictions={answers}"], "did you mean 'mathvista'?"),
        (
            ["benchmark=mathvista", f"predictions={answers}", "grounding=true"],
            "grounding=true needs a checkpoint to ask again, and predictions are recorded: leave it out",
        ),
        ([f"predictions={answers}"], "predictions are scored by a benchmark's rule: add benchmark=NAME"),
        (["benchmark=mathvista", f"data.path={data}"], "checkpoint is not set"),
        (["benchmark=vsibench", "checkpoint=tiny", f"data.path={rooms(tmp_path)}"], "s0.mp4' does not exist"),
        (["benchmark=vsibench", f"checkpoint={unloadable}", f"data.path={broken}"], "s1.mp4 can't be read"),
        (
            ["benchmark=mathvista", f"predictions={answers}", f"data.path={data}", "missing=skip", *SILENT],
            "judge: none of 1 answers could be judged, at last because of ConnectError from http://127.0.0.1:9/v1",
        ),
        (["compare=[nowhere,here]"], "compare: nowhere has no evaluation.json"),
    ):
        done = run("evaluate.py", *arguments, folder=tmp_path)
        assert done.returncode == 2, arguments
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_checkpoint_answers_a_benchmark_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    arguments = ("benchmark=geometry", "checkpoint=tiny", "rollout=transformers", "limit=6", "hydra.run.dir=out")
    done = run("evaluate.py", *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    result = json.loads((out / "evaluation.json").read_text())
    assert (result["benchmark"], result["samples"]) == ("geometry", 6)
    assert result["stamp"]["decoding"]["temperature"] == 0
    assert result["stamp"]["max_pixels"] and result["stamp"]["frames"] is None  # there are no videos
    lines = (out / "responses.jsonl").read_text().splitlines()
    assert len(lines) == 6
    marked = json.loads(lines[0]) | {"response": r"\boxed{kept}"}  # so that drawing it again would show
    (out / "responses.jsonl").write_text("\n".join([json.dumps(marked), *lines[1:4], lines[4][:9]]))
    done = run("evaluate.py", *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    again = [json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines()]
    assert again[0]["response"] == r"\boxed{kept}"
    assert sorted(map(json.dumps, again[1:])) == sorted(lines[1:])
    done = run("evaluate.py", *arguments, "benchmark.geometry.instruction='Be brief.'", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    other = [json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines()]
    assert [row["id"] for row in other] == [row["id"] for row in again], "each problem is answered once"
    assert not {row["asked"] for row in other} & {row["asked"] for row in again}, "another question, another answer"
    assert r"\boxed{kept}" not in {row["response"] for row in other}


def test_a_checkpoint_answers_questions_about_videos(tmp_path: Path) -> None:
    data = rooms(tmp_path, frames=20)
    arguments = ("benchmark=vsibench", "checkpoint=tiny", f"data.path={data}", "rollout=transformers")
    more = ("rollout.video_frames=16", "rollout.max_response_tokens=8", "hydra.run.dir=out", "grounding=true")
    done = run("evaluate.py", *arguments, *more, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (result["samples"], result["stamp"]["frames"], result["headline"]["name"]) == (2, 16, "overall")
    for folder in (tmp_path / "out", tmp_path / "out" / "blank", tmp_path / "out" / "swapped"):
        assert len((folder / "responses.jsonl").read_text().splitlines()) == 2
    found = result["grounding"]
    assert (found["headline"], found["problems"], found["same_answer"]) == ("overall", 2, 2)
    assert found["true"]["value"] == result["headline"]["value"]
    assert "the model was made for 2048 tokens: prompts of up to 2040 are asked" in done.stdout
    assert result["stamp"]["decoding"]["max_prompt_tokens"] == 2040
    assert len(result["stamp"]["pictures_sha256"]) == 64
    assert "overall without the right pictures, on 2 problems:" in done.stdout


@needs_vllm
def test_a_benchmarks_own_limits_are_cut_to_what_the_model_takes(tmp_path: Path) -> None:
    """The engine refuses to start for more, and the tiny model takes less than any published benchmark asks for."""
    data = write(tmp_path / "d.jsonl", [{"id": n, "problem": "1+1?", "answer": "2"} for n in range(2)])
    arguments = ("benchmark=jsonl", "checkpoint=tiny", f"data.path={data}", "hydra.run.dir=out")
    done = run("evaluate.py", *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    decoding = json.loads((tmp_path / "out" / "evaluation.json").read_text())["stamp"]["decoding"]
    assert (decoding["max_prompt_tokens"], decoding["max_response_tokens"]) == (1024, 1024)


def test_several_answers_to_a_local_file_are_repeated_figures(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", [{"id": n, "problem": "1+1?", "answer": "2"} for n in range(2)])
    texts = [(0, r"\boxed{2}"), (0, r"\boxed{3}"), (1, r"\boxed{3}"), (1, r"\boxed{3}")]
    answers = write(tmp_path / "a.jsonl", [{"id": n, "response": text} for n, text in texts])
    done = run(
        "evaluate.py",
        "benchmark=jsonl",
        f"predictions={answers}",
        f"data.path={data}",
        "hydra.run.dir=o",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    assert result["headline"]["value"] == 25.0
    assert result["repeated"] == {"avg@2": 25.0, "pass@1": 25.0, "pass@2": 50.0, "maj@2": 50.0}

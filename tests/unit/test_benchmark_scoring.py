"""Recorded answers: what is read, what is refused, what is left, and going on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from atrl.benchmarks.answers import read_answers
from atrl.benchmarks.base import Answer, Item, Scored, checksum
from atrl.benchmarks.local import LocalProblems
from atrl.benchmarks.mathvista import MathVista
from atrl.benchmarks.result import make_stamp, summarise, table, write_result
from atrl.benchmarks.run import limited
from atrl.benchmarks.scoring import Record, RecordFile, score_answers, scorer_for
from atrl.benchmarks.source import OfficialRows
from atrl.benchmarks.wemath import WeMath
from atrl.evaluation.compare import compare
from atrl.evaluation.repeated import majority_is_right, pass_at_k, repeated_figures
from atrl.rewards.exact import ExactAnswer
from atrl.rewards.weighted import WeightedReward
from tests.unit.test_benchmark_figures import wemath_items


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def item(name: str, gold: str = "3") -> Item:
    return Item(name, gold, {"question_type": "free_form", "answer_type": "integer"})


def test_answers_are_responses_or_extractions_and_several_are_samples(tmp_path):
    rows = [
        {"id": 1, "response": "It is 3", "extraction": "4"},
        {"id": "2", "response": "x"},
        {"id": "1", "extraction": 5},
        {"id": "9", "response": "to no problem"},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    read = read_answers(path, ["1", "2"])
    assert read.answers == [Answer("1", "It is 3", "4"), Answer("2", "x"), Answer("1", None, 5, sample=1)]
    assert (read.left_out, read.unanswered) == (1, [])
    again = read_answers(path, ["1", "2"], extract_again=True)
    assert [answer.extraction for answer in again.answers] == [None, None, 5]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "1"}], "line 1 of a.jsonl: there is neither a response nor an extraction"),
        ([{"id": "1", "response": 3}], "line 1 of a.jsonl: the response must be text, got 3"),
        ([{"id": None, "response": "x"}], "line 1 of a.jsonl: id None names no problem"),
        ([{"pid": "1", "response": "x"}], "has no column 'id'. Its columns are pid, response"),
        ([{"id": "7", "response": "x"}], r"none of the 1 ids in .* \(as '7'\) is a problem's \(as '1'\)"),
        ([{"id": "1", "response": "x"}], "1 of 2 problems have no answer in .*, the first is '2': add them, or set"),
    ],
)
def test_answers_that_cant_be_used_are_refused_in_one_line(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message) as error:
        read_answers(write(tmp_path / "a.jsonl", rows), ["1", "2"])
    assert "\n" not in str(error.value)


def test_whole_numbers_that_became_floats_are_the_same_ids_in_data_and_answers(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"id": 7, "response": "x"}, {"id": 8.0, "response": "y"}])
    rule = MathVista()
    ids = [rule.item_id({"id": number}) for number in (7.0, 8)]
    assert [answer.id for answer in read_answers(path, ids).answers] == ids == ["7", "8"]


def test_problems_without_an_answer_can_be_skipped(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"id": "2", "response": "x"}])
    assert read_answers(path, ["1", "2", "3"], missing="skip").unanswered == ["1", "3"]


@pytest.mark.parametrize("suffix", ["json", "named.json", "jsonl", "parquet"])
def test_official_rows_are_read_from_every_format(tmp_path, suffix):
    """And have one checksum, whichever it was and in whatever order the rows came."""
    rows = [
        {"pid": str(n), "question_type": "free_form", "answer_type": "float", "precision": 1.0, "answer": f"{n}.5"}
        for n in (1, 2)
    ]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[::-1]), path)
    elif suffix == "named.json":
        named = {row["pid"]: {key: value for key, value in row.items() if key != "pid"} for row in rows}
        path.write_text(json.dumps(named))
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    else:
        write(path, rows)
    rule = MathVista()
    items = rule.items(OfficialRows(path=str(path)).table(rule))
    assert sorted(found.id for found in items) == ["1", "2"]
    expected = [Item(row["pid"], row["answer"], _roles(row)) for row in rows]
    assert checksum(items) == checksum(expected)
    assert checksum(items) != checksum(expected[:1])


def _roles(row: dict) -> dict:
    return {"id" if key == "pid" else key: value for key, value in row.items()}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"pid": "1", "answer": "3", "question_type": "free_form"}], "has no column 'answer_type', the answer_type"),
        (
            [{"pid": "1", "answer": None, "question_type": "f", "answer_type": "i"}],
            "line 1 of d.jsonl: answer is missing",
        ),
        (
            [{"pid": "1", "answer": "3", "question_type": "f", "answer_type": "i"}] * 2,
            "line 2 of d.jsonl: id '1' is that",
        ),
    ],
)
def test_rows_that_cant_be_scored_are_refused(tmp_path, rows, message):
    rule = MathVista()
    source = OfficialRows(path=str(write(tmp_path / "d.jsonl", rows)))
    with pytest.raises(ValueError, match=message):
        rule.items(source.table(rule))


def test_several_files_are_one_table(tmp_path):
    row = {"question_type": "free_form", "answer_type": "integer", "answer": "3"}
    paths = [str(write(tmp_path / f"{n}.jsonl", [{"pid": n, **row}])) for n in ("a", "b")]
    rule = MathVista()
    assert [found.id for found in rule.items(OfficialRows(path=paths).table(rule))] == ["a", "b"]


def unit(found: Item) -> str:
    """Odd and even problems belong together."""
    return "odd" if int(found.id) % 2 else "even"


class Counting:
    """A scorer that says what it was asked, and stops after some chunks as Ctrl-C would."""

    def __init__(self, calls: int = 10**9) -> None:
        self.asked: list[str] = []
        self.calls = calls

    def score(self, pairs):
        if self.calls == 0:
            raise KeyboardInterrupt
        self.calls -= 1
        self.asked += [answer.id for _, answer in pairs]
        return [Scored(answer.response, answer.response, 1.0, {"x": 0.5}) for _, answer in pairs]

    def close(self) -> None:
        pass


def test_an_interrupted_scoring_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("atrl.benchmarks.scoring._CHUNK", 2)
    answers = [Answer(str(n), response="r") for n in range(7)]
    items = {str(n): item(str(n)) for n in range(7)}
    with pytest.raises(KeyboardInterrupt):
        score_answers(Counting(2), items, answers, RecordFile(tmp_path, {"job": 1}), label="x", unit=unit)
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"id": "4", "extr')  # the line that was being written
    second = Counting()
    records = score_answers(second, items, answers, RecordFile(tmp_path, {"job": 1}), label="x", unit=unit)
    assert second.asked == ["4", "5", "6"]
    assert [record.id for record in records] == [str(n) for n in range(7)]
    assert records[0].scored.extras == {"x": 0.5}
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert [Record.from_json(json.loads(line)) for line in lines] == records
    assert [json.loads(line)["unit"] for line in lines] == ["even", "odd"] * 3 + ["even"]
    assert Record.from_json({"id": "5", "gold": "3", "score": None}).unit == "5"  # as before units were written
    other = Counting()
    score_answers(other, items, answers, RecordFile(tmp_path, {"job": 2}), label="x", unit=unit)
    assert len(other.asked) == 7  # another job's records are worth nothing


def test_an_answer_without_a_verdict_is_asked_again_and_never_wrong(tmp_path):
    items, answers = {"1": item("1"), "2": item("2")}, [Answer("1", "3"), Answer("2", "3")]

    class Failing(Counting):
        def score(self, pairs):
            return [
                None if answer.id == "2" else scored
                for (_, answer), scored in zip(pairs, super().score(pairs), strict=True)
            ]

    records = score_answers(Failing(), items, answers, RecordFile(tmp_path, {}), label="x", unit=unit)
    row = json.loads((tmp_path / "records.jsonl").read_text().splitlines()[1])
    assert (row["correct"], row["score"]) == (None, None)
    rule = MathVista()
    result = summarise(
        rule, list(items.values()), records, make_stamp(rule, list(items.values()), subset="all 2"), seed=0
    )
    assert (result["headline"]["value"], result["samples"], result["unjudged"], result["unparseable"]) == (100, 2, 1, 0)
    assert "1 without a verdict" in "\n".join(table(result))
    again = Counting()
    score_answers(again, items, answers, RecordFile(tmp_path, {}), label="x", unit=unit)
    assert again.asked == ["2"]


def test_evaluation_json_holds_what_it_should():
    items = [item("1"), item("2"), item("3")]
    scored = [Scored("3", "3", 1.0), Scored("4", "4", 0.0), Scored("?", None, 0.0)]
    records = [Record(found.id, 0, found.gold, verdict, found.id) for found, verdict in zip(items, scored, strict=True)]
    rule = MathVista()
    result = summarise(rule, items, records, make_stamp(rule, items, subset="all 3"), seed=0)
    assert result["benchmark"] == "mathvista"
    assert result["samples"] == result["problems"] == 3
    assert result["headline"]["name"] == "accuracy"
    assert result["headline"]["value"] == pytest.approx(100 / 3)
    assert result["headline"]["ci95"] == [0.0, 100.0]
    assert result["metrics"]["answer_type/integer"] == pytest.approx(100 / 3)
    assert (result["right"], result["unparseable"], result["unjudged"]) == (1, 1, 0)
    assert "repeated" not in result
    assert set(result["stamp"]) >= {
        *("judge", "judge_prompt_sha256", "decoding", "min_pixels", "max_pixels", "frames", "subset", "data_sha256"),
    }
    assert result["stamp"]["options"] == {"ignore_empty": False, "instruction": ""}
    assert json.loads(json.dumps(result)) == result


def test_a_headline_that_counts_nothing_is_a_dash(tmp_path, capsys):
    """We-Math of which no composite has an answer to all of its steps: half of the steps are right."""
    rule, items = WeMath(), wemath_items([("c", 2)])[:2]
    answers = [Answer(items[0].id, extraction="A"), Answer(items[1].id, extraction="B")]
    scorer = scorer_for(rule, None, workers=1)
    known = {found.id: found for found in items}
    records = score_answers(scorer, known, answers, RecordFile(tmp_path, {}), label="x", unit=rule.unit)
    scorer.close()
    result = summarise(rule, items, records, make_stamp(rule, items, subset="2 answered of all 3"), seed=0)
    assert result["headline"] == {"name": "score_strict", "value": None, "ci95": [None, None]}
    lines = table(result)
    assert lines[0] == "wemath: score_strict –  on 2 problems"
    assert lines[1].split()[:2] == ["one_step", "50.00"]
    write_result(tmp_path, result)
    found = compare(OmegaConf.create({"compare": [str(tmp_path)] * 2}), tmp_path)
    assert (found["problems"], found["units"]) == (2, 1)
    assert "   50.00 %  (headline: score_strict –)" in capsys.readouterr().out


def test_a_limit_takes_whole_units():
    items = wemath_items([(f"c{n}", 2 + n % 2) for n in range(20)])
    chosen = limited(WeMath(), items, 10, seed=0)
    assert 7 <= len(chosen) <= 10
    units = {WeMath().unit(found) for found in chosen}
    assert [found for found in items if WeMath().unit(found) in units] == chosen
    assert len(limited(WeMath(), items, 1, seed=0)) in (3, 4)
    assert limited(WeMath(), items, None, seed=0) == items


def test_the_training_reward_scores_a_local_file(tmp_path):
    """Whole responses by the reward itself, recorded extractions as if boxed, choices by their letter."""
    rows = [
        {"problem": "<image> 1+1?", "answer": 2, "images": ["gone.png"]},
        {"problem": "Colour?", "answer": "red", "choices": ["blue", "red"]},
    ]
    rule = LocalProblems(reward=WeightedReward(parts={"exact": ExactAnswer()}))
    items = rule.items(OfficialRows(path=str(write(tmp_path / "d.jsonl", rows))).table(rule))
    assert [(found.id, found.gold) for found in items] == [("d:1", "2"), ("d:2", "B")]
    scorer = scorer_for(rule, None, workers=1)
    pairs = [
        (items[0], Answer("d:1", r"so \boxed{2}")),
        (items[0], Answer("d:1", "so 2")),
        (items[0], Answer("d:1", None, 2)),
        (items[1], Answer("d:2", r"\boxed{B}")),
        (items[1], Answer("d:2", r"\boxed{red}")),
    ]
    scored = scorer.score(pairs)
    assert [one.score for one in scored] == [1, 0, 1, 1, 0]
    assert [one.parsed for one in scored] == [True, False, True, True, True]


def test_pass_at_k_by_hand():
    assert pass_at_k(4, 1, 1) == pytest.approx(1 / 4)
    assert pass_at_k(4, 1, 2) == pytest.approx(1 / 2)
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)  # 1 of 6 pairs is all wrong
    assert (pass_at_k(3, 0, 3), pass_at_k(3, 1, 3)) == (0.0, 1.0)
    with pytest.raises(ValueError, match="1 <= k <= samples"):
        pass_at_k(2, 1, 3)


def test_a_majority_counts_answers_and_not_right_ones():
    assert majority_is_right(["a", "b", "a"], [True, False, True])
    assert not majority_is_right(["a", "b", "b"], [True, False, False])
    assert majority_is_right(["a", "b"], [True, False])  # as many votes: the first
    assert not majority_is_right([None, None, "b"], [False, False, False])
    assert majority_is_right([None, None, "b"], [False, False, True])
    assert not majority_is_right([None], [False])


def test_repeated_figures_by_hand():
    figures = repeated_figures([["a", "a", "b"], ["c", "d", "d"]], [[1, 1, 0], [1, 0, 0]])
    assert figures == pytest.approx(
        {"avg@3": 0.5, "pass@1": 0.5, "pass@2": (1 + 2 / 3) / 2, "pass@3": 1.0, "maj@3": 0.5}
    )
    figures = repeated_figures([["a"] * 32], [[1] * 32])
    assert list(figures) == ["avg@32", *(f"pass@{size}" for size in (1, 2, 4, 8, 16, 32)), "maj@32"]
    assert set(figures.values()) == {1}

"""Two results, problem by problem."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from atrl.data.frames import FrameSampler
from atrl.evaluation.compare import compare, mcnemar, paired_interval
from atrl.evaluation.measured import held_out_stamp, stamp_differences
from atrl.rewards.exact import ExactAnswer
from atrl.rewards.weighted import WeightedReward
from atrl.types import Turn
from tests.unit.scripted import pictured_problems

STAMP = {"judge": "rules", "data_sha256": "x", "decoding": None}


def finished(folder: Path, verdicts: dict[str, float | list[float] | None], units=None, **stamp) -> Path:
    """A result; a list of scores is of several samples, a unit is written for each problem unless `units` is {}."""
    folder.mkdir()
    rows = [
        {"id": name, "correct": None if score is None else score == 1, "score": score}
        | ({} if units == {} else {"unit": (units or {}).get(name, name)})
        for name, scores in verdicts.items()
        for score in (scores if isinstance(scores, list) else [scores if scores is None else float(scores)])
    ]
    right = [row["score"] for row in rows if row["score"] is not None]
    result = {
        "benchmark": stamp.pop("benchmark", "mathvista"),
        "headline": {"name": "accuracy", "value": 100 * sum(right) / max(1, len(right))},
        "stamp": STAMP | stamp,
    }
    (folder / "evaluation.json").write_text(json.dumps(result))
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(tmp_path: Path, first: Path, second: Path) -> dict:
    return compare(OmegaConf.create({"compare": [str(first), str(second)], "seed": 0}), tmp_path)


def test_a_comparison_by_hand(tmp_path, capsys):
    first = finished(tmp_path / "a", {"1": True, "2": True, "3": False, "4": False, "5": True})
    second = finished(tmp_path / "b", {"1": True, "2": False, "3": True, "4": True, "6": True})
    found = run(tmp_path, first, second)
    assert (found["problems"], found["only_in"]) == (4, [1, 1])
    assert found["accuracy"] == [50.0, 75.0]
    assert found["difference"] == 25.0
    assert (found["gained"], found["lost"]) == (["3", "4"], ["2"])
    assert found["flips"] == {"test": "McNemar", "gained": 2, "lost": 1, "p": 1.0}  # 2 · (1 + 3) / 8
    assert found["stamp_differences"] == {}
    assert (found["units"], found["units_known"]) == (4, True)
    assert json.loads((tmp_path / "comparison.json").read_text()) == found
    shown = capsys.readouterr().out
    assert "difference +25.00" in shown
    assert "McNemar: 2 gained, 1 lost, p = 1" in shown and "drawn by problem" not in shown
    assert "gained: 3, 4" in shown
    assert "problems in one result alone, left out: 1 | 1" in shown


VARIANTS = {f"{question}/{variant}": question for question in "abcd" for variant in range(10)}


def variants(right: str) -> dict[str, float]:
    return {name: float(question in right) for name, question in VARIANTS.items()}


def test_variants_of_a_question_are_drawn_and_counted_as_one(tmp_path, capsys):
    """One of four questions gained, all ten variants of it: no more than one flip, whose p-value is 1.

    Drawn four times of four it counts K ~ Binomial(4, 1/4): P(K = 0) = 0.316 and P(K >= 3) = 13/256 = 0.051 are above
    0.025, P(K = 4) = 1/256 below it, so the interval is that of 0 to 3 of 4. Drawn by row it would begin at 12.5.
    """
    first = finished(tmp_path / "a", variants("a"), VARIANTS)
    second = finished(tmp_path / "b", variants("ab"), VARIANTS)
    found = run(tmp_path, first, second)
    assert (found["problems"], found["units"], found["difference"]) == (40, 4, 25.0)
    assert found["ci95"] == [0.0, 75.0]
    assert found["flips"] == {"test": "sign test", "gained": 1, "lost": 0, "p": 1.0}
    assert (found["gained"], found["lost"]) == (["b"], [])
    shown = capsys.readouterr().out
    assert "40 problems of 4 units in both" in shown
    assert "sign test over units: 1 gained (mean went up), 0 lost (mean went down), p = 1" in shown


def test_a_unit_counts_by_its_problems(tmp_path):
    """Of units of three problems and one, drawn twice, the means are 1 (1/4), 3/4 (1/2) and 0 (1/4)."""
    units = {"x/1": "x", "x/2": "x", "x/3": "x", "y/1": "y"}
    first = finished(tmp_path / "a", dict.fromkeys(units, 0.0), units)
    second = finished(tmp_path / "b", {"x/1": 1.0, "x/2": 1.0, "x/3": 1.0, "y/1": 0.0}, units)
    found = run(tmp_path, first, second)
    assert (found["difference"], found["ci95"]) == (75.0, [0.0, 100.0])
    assert paired_interval([3.0, 0.0], [3, 1]) == (0.0, 1.0)


def test_a_unit_that_gains_as_much_as_it_loses_is_no_flip(tmp_path):
    """0.1 + 0.2 - 0.3 isn't 0 in floating point."""
    units = dict.fromkeys(("x/1", "x/2", "x/3"), "x")
    first = finished(tmp_path / "a", {"x/1": 0.0, "x/2": 0.0, "x/3": 0.3}, units)
    second = finished(tmp_path / "b", {"x/1": 0.1, "x/2": 0.2, "x/3": 0.0}, units)
    assert run(tmp_path, first, second)["flips"] == {"test": "sign test", "gained": 0, "lost": 0, "p": 1.0}


def test_of_several_samples_the_mean_goes_up_or_down(tmp_path, capsys):
    """From 7 of 8 on all twenty, to 8 of 8 on ten and 0 of 8 on ten: 10 of 20 went up, ten went down."""
    names = [str(number) for number in range(20)]
    first = finished(tmp_path / "a", {name: [1.0] * 7 + [0.0] for name in names})
    second = finished(tmp_path / "b", {name: [float(int(name) < 10)] * 8 for name in names})
    found = run(tmp_path, first, second)
    assert found["difference"] == -37.5
    assert found["flips"] == {"test": "sign test", "gained": 10, "lost": 10, "p": 1.0}
    assert (found["gained"], found["lost"]) == (names[:10], names[10:])
    assert "sign test over problems: 10 gained (mean went up), 10 lost" in capsys.readouterr().out


def test_results_without_units_compare_by_problem_and_say_so(tmp_path, capsys):
    """As before there were any; what one of the two says is of both."""
    first = finished(tmp_path / "a", variants("a"), {})
    second = finished(tmp_path / "b", variants("ab"), {})
    found = run(tmp_path, first, second)
    assert (found["units"], found["units_known"]) == (40, False)
    assert found["flips"] == {"test": "McNemar", "gained": 10, "lost": 0, "p": 2 / 2**10}
    assert "drawn by problem: neither result says which belong together" in capsys.readouterr().out
    again = finished(tmp_path / "c", variants("ab"), VARIANTS)
    for pair in ((first, again), (again, first)):
        found = run(tmp_path, *pair)
        assert (found["units"], found["units_known"]) == (4, True)


def test_results_that_were_not_measured_alike_say_so_first(tmp_path, capsys):
    first = finished(tmp_path / "a", {"1": True, "2": False})
    second = finished(tmp_path / "b", {"1": True, "2": True}, judge="gpt-4o")
    found = run(tmp_path, first, second)
    assert found["stamp_differences"] == {"judge": ["rules", "gpt-4o"]}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("NOT MEASURED ALIKE")
    assert lines[1] == '  judge: "rules" | "gpt-4o"'
    assert lines[2].endswith("(not measured alike)")
    long = {"class": "x" * 100}
    one, other = (
        finished(tmp_path / name, {"1": True}, judge=long | own) for name, own in (("c", {}), ("d", {"n": 2}))
    )
    run(tmp_path, one, other)
    assert capsys.readouterr().out.splitlines()[1] == '  judge: {} | {"n": 2}'  # what they share is left out


def test_an_answer_without_a_verdict_is_in_neither(tmp_path):
    first = finished(tmp_path / "a", {"1": True, "2": None})
    second = finished(tmp_path / "b", {"1": True, "2": True})
    assert run(tmp_path, first, second)["problems"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": "mmmu"}, "is of mathvista and .* of mmmu"),
        ({"verdicts": {"9": True}}, "have no problem in common"),
    ],
)
def test_results_that_cant_pair_are_refused(tmp_path, change, message):
    first = finished(tmp_path / "a", {"1": True})
    second = finished(tmp_path / "b", change.pop("verdicts", {"1": True}), **change)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, first, second)


def test_what_is_no_result_is_refused(tmp_path):
    good = finished(tmp_path / "a", {"1": True})
    with pytest.raises(ValueError, match=r"nowhere has no evaluation\.json"):
        run(tmp_path, good, tmp_path / "nowhere")
    broken = finished(tmp_path / "b", {"1": True})
    (broken / "records.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match=r"can't be read .*: evaluate again"):
        run(tmp_path, good, broken)


# Held-out problems


HELD_OUT = {
    "problems_sha256": "x", "reward_rule": {"class": "Exact", "require_boxed": True}, "samples": 2,
    "max_response_tokens": 64, "instruction": "", "max_pixels": 100,
}  # fmt: skip


def held_out(folder: Path, greedy: dict[str, str], sampled: dict[str, list[str]] | None = None, **stamp) -> Path:
    """A result as `evaluate.py checkpoint=…` leaves it: statuses by problem, and answers to blanked pictures."""
    folder.mkdir()
    rows = [{"id": name, "mode": "greedy", "status": status} for name, status in greedy.items()]
    rows += [{"id": name, "mode": "sampled", "status": s} for name, listed in (sampled or {}).items() for s in listed]
    rows += [{"id": name, "mode": "blank", "status": "wrong"} for name in greedy]
    more = {"response": "two\u2028lines", "gold": "1"}  # U+2028 ends a line for `str.splitlines`
    text = "".join(json.dumps(row | more, ensure_ascii=False) + "\n" for row in rows)
    (folder / "responses.jsonl").write_text(text, encoding="utf-8")
    result = {"data": "geometry", "greedy": {}} | ({} if sampled is None else {"sampled": {}})
    (folder / "evaluation.json").write_text(json.dumps(result | {"stamp": HELD_OUT | stamp}))
    return folder


def test_held_out_problems_compare_mode_by_mode(tmp_path, capsys):
    """Greedily one of three gained of a and one lost; sampled b's mean goes from 1/2 to 0 and c's from 0 to 1/2."""
    first = held_out(
        tmp_path / "a",
        {"a": "wrong", "b": "right", "c": "truncated"},
        {"a": ["right", "right"], "b": ["right", "wrong"], "c": ["wrong", "unparseable"]},
    )
    second = held_out(
        tmp_path / "b",
        {"a": "right", "b": "unparseable", "c": "right"},
        {"a": ["right", "right"], "b": ["wrong", "wrong"], "c": ["right", "wrong"]},
    )
    found = run(tmp_path, first, second)
    assert (found["data"], found["stamp_differences"]) == ("geometry", {})
    greedy, sampled = found["greedy"], found["sampled"]
    assert greedy["accuracy"] == [pytest.approx(100 / 3), pytest.approx(200 / 3)]
    assert (greedy["gained"], greedy["lost"], greedy["only_in"]) == (["a", "c"], ["b"], [0, 0])
    assert greedy["flips"] == {"test": "McNemar", "gained": 2, "lost": 1, "p": 1.0}
    assert (sampled["accuracy"], sampled["difference"]) == ([50.0, 50.0], 0.0)
    assert sampled["flips"] == {"test": "sign test", "gained": 1, "lost": 1, "p": 1.0}
    assert json.loads((tmp_path / "comparison.json").read_text()) == found
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if " in both" in line] == [
        "geometry, greedy, 3 problems in both", "geometry, sampled, 3 problems in both",
    ]  # fmt: skip
    assert not [line for line in shown if "blank" in line or "drawn by problem" in line]


def test_held_out_problems_that_one_was_not_asked_are_left_out(tmp_path, capsys):
    """What a checkpoint brings along may differ, and with it which prompts are too long; it is said."""
    first = held_out(tmp_path / "a", {"a": "wrong", "b": "right"}, max_pixels=50, instruction="Think.")
    second = held_out(tmp_path / "b", {"a": "right"})
    found = run(tmp_path, first, second)
    assert found["stamp_differences"] == {"instruction": ["Think.", ""], "max_pixels": [50, 100]}
    assert (found["greedy"]["problems"], found["greedy"]["only_in"]) == (1, [1, 0])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("NOT MEASURED ALIKE")
    assert "geometry, greedy, 1 problems in both  (not measured alike)" in lines


@pytest.mark.parametrize(
    ("stamp", "message"),
    [
        ({"problems_sha256": "y"}, r"geometry in \S+a and geometry in \S+b are not the same problems: evaluate both"),
        ({"samples": 8}, r"were scored by other settings \(samples 2 \| 8\): evaluate one of them again"),
        (
            {"reward_rule": {"class": "Exact", "require_boxed": False}},
            r'\(reward_rule \{"require_boxed": true\} \| \{"require_boxed": false\}\)',
        ),
    ],
)
def test_held_out_results_of_other_problems_or_settings_are_refused(tmp_path, stamp, message):
    first, second = held_out(tmp_path / "a", {"a": "right"}), held_out(tmp_path / "b", {"a": "right"}, **stamp)
    with pytest.raises(ValueError, match=message) as refused:
        run(tmp_path, first, second)
    assert "\n" not in str(refused.value)


def test_held_out_results_that_cant_be_read_are_refused(tmp_path):
    good = held_out(tmp_path / "a", {"a": "right"})
    with pytest.raises(ValueError, match=r"is of mathvista and \S+a is of held-out problems: no two can pair"):
        run(tmp_path, finished(tmp_path / "b", {"a": True}), good)
    copied = tmp_path / "run"
    copied.mkdir()
    (copied / "evaluation.json").write_text((good / "evaluation.json").read_text())
    with pytest.raises(ValueError, match=r"run has no responses\.jsonl: name the folder that the evaluation wrote to"):
        run(tmp_path, good, copied)
    before = held_out(tmp_path / "c", {"a": "right"})
    (before / "evaluation.json").write_text(json.dumps({"data": "geometry", "greedy": {}}))
    with pytest.raises(ValueError, match=r"c doesn't say by which settings it was measured: evaluate again$"):
        run(tmp_path, good, before)


def test_a_stamp_tells_held_out_problems_apart_by_all_that_is_asked_shown_and_right():
    def stamp(problems, **rollout):
        with closing(WeightedReward(parts={"exact": ExactAnswer()})) as reward:
            settings = SimpleNamespace(
                **{"max_response_tokens": 64, "max_prompt_tokens": 256, "frames": FrameSampler()} | rollout
            )
            return held_out_stamp(problems, reward, samples=8, instruction="Say.", rollout=settings)

    first, second = pictured_problems(1, 2)
    plain = stamp([first, second])
    assert plain == stamp([second, first]) == json.loads(json.dumps(plain))
    assert stamp([first, second], frames=FrameSampler(count=3)) == plain  # no videos
    for other in (
        replace(first, question="<image>!"), replace(first, answer="3"), replace(first, id="n3"),
        replace(first, images=second.images), replace(first, history=(Turn("user", "Hello."),)),
    ):  # fmt: skip
        changed = stamp([other, second])
        assert stamp_differences(plain, changed).keys() == {"problems_sha256"}
    assert stamp([first], max_response_tokens=65)["max_response_tokens"] == 65


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (0, 6, 2 / 64), (8, 2, 2 * (1 + 10 + 45) / 1024), (5, 5, 1.0)],
)
def test_mcnemar_by_hand(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_the_interval_of_a_difference_agrees_with_the_normal_one():
    differences = np.array([1.0] * 120 + [-1.0] * 60 + [0.0] * 820)
    low, high = paired_interval(differences, np.ones(1000), seed=1)
    half = 1.96 * differences.std() / np.sqrt(1000)
    assert low == pytest.approx(0.06 - half, abs=0.002)
    assert high == pytest.approx(0.06 + half, abs=0.002)


@pytest.mark.parametrize(
    ("change", "interval"), [(0.0, (-0.27753, 0.27753)), (1.0, (0.72247, 1.0)), (-0.5, (-0.5, -0.36123))]
)
def test_units_that_all_change_alike_have_an_interval(change, interval):
    """Of ten: Wilson's upper end of 0 of 10 is z²/(10 + z²) = 3.84146/13.84146 = 0.27753; every draw is the same."""
    assert paired_interval([3 * change] * 10, [3] * 10) == pytest.approx(interval, abs=1e-5)


def test_stamps_differ_in_what_one_of_them_lacks():
    assert stamp_differences({"a": 1, "b": None}, {"a": 1, "c": 2}) == {"c": [None, 2]}

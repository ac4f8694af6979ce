"""What must agree before two results mean the same is in the stamp, and `compare` names what does not."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from atrl.benchmarks import hallusionbench
from atrl.benchmarks.base import Item
from atrl.benchmarks.endpoint import EndpointJudge
from atrl.benchmarks.generate import weights_of
from atrl.benchmarks.hallusionbench import HallusionBench
from atrl.benchmarks.judge import prompt_hash
from atrl.benchmarks.local import LocalProblems
from atrl.benchmarks.result import make_stamp
from atrl.evaluation.compare import compare, stamp_differences
from atrl.rewards.base import RewardPart
from atrl.rewards.exact import ExactAnswer
from atrl.rewards.format import BoxedFormat
from atrl.rewards.math_answer import MathAnswer
from atrl.rewards.math_verify import MathVerifyAnswer
from atrl.rewards.weighted import WeightedReward
from tests.unit.test_benchmark_rules import hallusion_item

RULE = HallusionBench()


def asked(item: Item, question: str) -> Item:
    return dataclasses.replace(item, row={**item.row, "question": question})


ITEMS = [asked(hallusion_item("VD", "1"), "Is it?"), asked(hallusion_item("VS", "0", gold="0"), "Is it not?")]
DECODING = {"temperature": 0.0, "samples": 1, "max_response_tokens": 64, "max_prompt_tokens": 512}
ASKED = {"subset": "all 2", "decoding": DECODING, "pixels": {"min_pixels": 4, "max_pixels": 64}, "frames": 32}
ASKED |= {"digests": {item.id: (b"one", b"two") for item in ITEMS}}
JUDGE = EndpointJudge(model="m", url="http://localhost/v1", cache=None)


def stamp(rule=RULE, items=ITEMS, **changes):
    return make_stamp(rule, items, **(ASKED | {"judge": JUDGE} | changes))


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        (stamp(judge=dataclasses.replace(JUDGE, model="n")), ["judge"]),
        (stamp(judge=dataclasses.replace(JUDGE, temperature=0.2)), ["judge"]),
        (stamp(judge=None), ["judge", "judge_prompt_sha256"]),
        (stamp(decoding=DECODING | {"temperature": 1.0}), ["decoding"]),
        (stamp(decoding=DECODING | {"max_response_tokens": 65}), ["decoding"]),
        (stamp(pixels={"min_pixels": 5, "max_pixels": 64}), ["min_pixels"]),
        (stamp(pixels={"min_pixels": 4, "max_pixels": 65}), ["max_pixels"]),
        (stamp(frames=16), ["frames"]),
        (stamp(subset="2 of 3, seed 0"), ["subset"]),
        (stamp(items=[dataclasses.replace(ITEMS[0], gold="no"), ITEMS[1]]), ["data_sha256"]),
        (stamp(items=ITEMS[:1]), ["prompt_sha256", "data_sha256", "pictures_sha256"]),
        (stamp(items=[ITEMS[0], asked(ITEMS[1], "Is it?")]), ["prompt_sha256", "data_sha256"]),
        (stamp(rule=HallusionBench(instruction="Yes or no?")), ["prompt_sha256", "options"]),
        (stamp(extract_again=True), ["extract_again"]),
        (stamp(pictures="blank"), ["pictures"]),
        (stamp(digests=ASKED["digests"] | {ITEMS[1].id: (b"one", b"three")}), ["pictures_sha256"]),
        (stamp(digests=ASKED["digests"] | {ITEMS[1].id: (b"two", b"one")}), ["pictures_sha256"]),
        (stamp(digests=ASKED["digests"] | {"a problem that was not asked": (b"one",)}), []),
        (stamp(digests=None), ["pictures_sha256"]),
        (stamp(items=ITEMS[::-1], rule=HallusionBench(hub="a/copy")), []),  # the same rows in another order
        (stamp(), []),
    ],
)
def test_compare_names_exactly_what_was_not_alike(tmp_path, capsys, changed, names):
    for folder, content in (("a", stamp()), ("b", changed)):
        finished(tmp_path / folder, content)
    found = compare(OmegaConf.create({"compare": [str(tmp_path / "a"), str(tmp_path / "b")]}), tmp_path)
    assert list(found["stamp_differences"]) == names
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("NOT MEASURED ALIKE") == bool(names)
    assert [line.split(":")[0].strip() for line in lines[1:][: len(names)]] == names


def test_the_wording_of_the_judges_question_is_in_the_stamp(monkeypatch):
    before = stamp()
    assert before["judge_prompt_sha256"] == prompt_hash(RULE)
    monkeypatch.setattr(hallusionbench, "_REQUEST", hallusionbench._REQUEST + " ")
    assert {name for name, value in stamp().items() if value != before[name]} == {"judge_prompt_sha256"}


def rewarded(**parts: RewardPart) -> dict:
    rule = LocalProblems(reward=WeightedReward(parts=parts))
    try:
        return make_stamp(rule, [Item("1", "2", {"prompt": "1+1?"})], subset="all 1")
    finally:
        rule.close()


def test_the_reward_that_judged_is_in_the_stamp():
    exact, maths = rewarded(exact=ExactAnswer()), rewarded(math=MathAnswer())
    assert [one["reward"] for one in (exact, maths)] == ["exact", "math"]
    assert stamp_differences(exact, maths).keys() == {"reward", "reward_rule"}
    assert exact["reward_rule"] == {"class": "atrl.rewards.exact.ExactAnswer", "require_boxed": True}
    assert stamp()["reward_rule"] is None


def test_so_is_the_rule_by_which_it_judged():
    """Whatever the part is called; weight, format part and number of workers change no verdict."""
    before = rewarded(math=MathAnswer())
    assert before["reward_rule"] == {
        "class": "atrl.rewards.math_answer.MathAnswer",
        "require_boxed": True,
        "float_rounding": 6,
        "cpu_seconds": 2.0,
        "memory_gib": 1.0,
        "edition": 2,
    }
    for part in (
        MathAnswer(require_boxed=False),
        MathAnswer(float_rounding=1),
        MathAnswer(cpu_seconds=1.0),
        MathAnswer(memory_gib=2.0),
        MathVerifyAnswer(),
    ):
        assert stamp_differences(before, rewarded(math=part)).keys() == {"reward_rule"}
    assert rewarded(math=MathAnswer(weight=0.5, workers=1), boxed=BoxedFormat()) == before


class NearAnswer(ExactAnswer):
    """One of somebody else's, which keeps its option to itself."""

    def __init__(self, *, by: float = 0.1) -> None:
        super().__init__()
        self._by = by


def test_the_rule_of_a_part_of_ones_own():
    assert NearAnswer(by=0.2).rule() == {"class": f"{__name__}.NearAnswer", "by": 0.2}
    changed = type("NearAnswer", (NearAnswer,), {"edition": 3, "__module__": __name__})
    assert changed(by=0.2).rule() == {"class": f"{__name__}.NearAnswer", "by": 0.2, "edition": 3}
    assert NearAnswer(by=Path("x")).rule()["by"] == repr(Path("x"))  # a stamp is JSON


def test_a_stamp_of_before_does_not_say_how_it_was_judged(tmp_path, capsys):
    """As with all that a stamp lacks: not known, so not alike. Two that don't say can't be told apart."""
    now = rewarded(math=MathAnswer())
    before = {name: value for name, value in now.items() if name != "reward_rule"}
    for folder, content in (("a", before), ("b", now), ("c", rewarded(math=MathAnswer(float_rounding=1)))):
        finished(tmp_path / folder, content)
    for pair, line in (
        ("ab", '  reward_rule: null | {"class": "atrl.rew'),
        ("bc", '  reward_rule: {"float_rounding": 6} | {"float_rounding": 1}'),
    ):
        compare(OmegaConf.create({"compare": [str(tmp_path / name) for name in pair]}), tmp_path)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("NOT MEASURED ALIKE") and lines[1].startswith(line)
    assert stamp_differences(before, before) == {}


def finished(folder: Path, content: dict) -> None:
    folder.mkdir()
    result = {"benchmark": "hallusionbench", "headline": {"name": "aAcc", "value": 100.0}, "stamp": content}
    (folder / "evaluation.json").write_text(json.dumps(result))
    (folder / "records.jsonl").write_text(json.dumps({"id": "x", "unit": "x", "correct": True, "score": 1.0}) + "\n")


def test_answers_belong_to_the_weights_that_gave_them(tmp_path):
    """Not to the name: `outputs/latest` is a link to the newest run, and a run can be done again in its folder."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    latest = tmp_path / "latest"
    latest.symlink_to(tmp_path / "one")
    before = weights_of(latest)
    assert before == weights_of(tmp_path / "one")
    latest.unlink()
    latest.symlink_to(tmp_path / "two")
    assert weights_of(latest) != before
    os.utime(tmp_path / "one" / "model.safetensors", ns=(1, 1))
    assert weights_of(tmp_path / "one") != before

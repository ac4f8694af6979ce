"""What a step leaves for a replay, and the comparison; expected values by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from atrl.replay.compare import compare_lists, compare_steps, table
from atrl.replay.step_file import RecordedStep, read_step, step_path, write_step
from atrl.types import CreditOutput, KeptTokens, Problem, Prompt, Reward, Rollout, RolloutGroup, Status

FACTS = {"threads": 1, "processes": 1}


def group(name: str, *responses: list[int], kept: bool = False) -> RolloutGroup:
    prompt = Prompt(problem=Problem(id=name, question="?", answer="!"), token_ids=[1], pixels={}, images=(), epoch=2,
                    engine_token_ids=[1])  # fmt: skip
    rollouts = []
    for ids in responses:
        left = KeptTokens(torch.tensor([i for id in ids for i in (id, id + 1)]), torch.tensor([2] * len(ids)))
        logprobs = [-float(token) / 8 for token in ids]
        rollouts.append(Rollout(ids, logprobs, finished=len(ids) > 1, kept=left if kept else None))
    return RolloutGroup(prompt, rollouts, [""] * len(responses), 0)


def rewards(*values: float) -> list[Reward]:
    return [Reward(total=value, parts={}, status=Status.RIGHT) for value in values]


def a_step(*, kept: bool = False, scale: bool = False):
    """Two responses of 2 and 1 tokens, and a group of one token that was left out."""
    mask = torch.tensor([[True, True], [True, False]])
    tensor = torch.tensor([[1.0, 2.0], [3.0, 99.0]])
    weights = torch.tensor([[0.5, 1.5], [1.0, 0.0]])
    return SimpleNamespace(
        groups=[group("a", [5, 6], [7], kept=kept)],
        rewards=[rewards(1.0, 0.1)],
        discarded=[(group("b", [8], kept=kept), rewards(0.25))],
        advantages=torch.tensor([[0.5, -0.5]]),
        experience=SimpleNamespace(response_mask=mask),
        credit=CreditOutput(weights, trajectory_scale=torch.tensor([2.0, 1.0]) if scale else None),
        logprobs=-tensor,
        losses=10 * tensor,
        metrics={"loss/policy": 0.1, "loss/gradient_norm": 2.5, "loss/entropy": 1.0},
    )


def test_what_a_step_leaves():
    step = RecordedStep.of(a_step())
    assert step.prompts == [("a/2", 2), ("b/2", 1)] and step.trained == 1
    assert {name: tensor.tolist() for name, tensor in step.tensors.items()} == {
        "lengths": [2, 1, 1],
        "finished": [True, False, False],
        "rewards": [1.0, 0.1, 0.25],
        "token_ids": [5, 6, 7, 8],
        "sampler_logprobs": [-0.625, -0.75, -0.875, -1.0],
        "advantages": [0.5, -0.5],
        "weights": [0.5, 1.5, 1.0],
        "logprobs": [-1.0, -2.0, -3.0],
        "losses": [10.0, 20.0, 30.0],
    }
    assert step.metrics == {"loss/policy": 0.1, "loss/gradient_norm": 2.5}


def test_a_scale_of_whole_rollouts_is_part_of_their_weights():
    assert RecordedStep.of(a_step(scale=True)).tensors["weights"].tolist() == [1.0, 3.0, 1.0]


def test_without_credit_every_token_weighs_one():
    step = a_step()
    step.credit = None
    assert RecordedStep.of(step).tensors["weights"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kept", [False, True])
def test_it_is_read_as_it_was_written(tmp_path, kept):
    step = RecordedStep.of(a_step(kept=kept))
    write_step(tmp_path, 3, step, FACTS)
    again, facts = read_step(tmp_path, 3)
    assert facts == FACTS
    assert (again.prompts, again.trained, again.metrics) == (step.prompts, step.trained, step.metrics)
    assert again.tensors.keys() == step.tensors.keys() and ("kept_ids" in step.tensors) is kept
    for name, tensor in step.tensors.items():
        assert torch.equal(again.tensors[name], tensor) and again.tensors[name].dtype == tensor.dtype, name
    groups = {"a/2": a_step(kept=kept).groups[0], "b/2": a_step(kept=kept).discarded[0][0]}
    for key, rollouts in again.rollouts().items():
        for found, expected in zip(rollouts, groups[key].rollouts, strict=True):
            assert (found.token_ids, found.finished) == (expected.token_ids, expected.finished)
            assert found.logprobs == expected.logprobs
            if kept:
                assert found.kept.ids.tolist() == expected.kept.ids.tolist()
                assert found.kept.counts.tolist() == expected.kept.counts.tolist()


def test_the_shares_of_two_ranks_are_one_step():
    shares = []
    for name in ("a", "b"):
        step = a_step()
        step.groups, step.discarded = [group(name, [5, 6], [7])], []
        shares.append(RecordedStep.of(step))
    both = RecordedStep.joined(shares)
    assert both.prompts == [("a/2", 2), ("b/2", 2)] and both.trained == 2
    assert both.tensors["token_ids"].tolist() == [5, 6, 7, 5, 6, 7]
    assert both.tensors["weights"].tolist() == [0.5, 1.5, 1.0] * 2
    assert both.place("losses", 4) == "b/2, sample 0, token 1"


@pytest.mark.parametrize("kept", [False, True])
def test_what_ranks_left_out_comes_after_what_they_trained_on(kept):
    """The first rank trained on a and left out b, the second trained on c and left out nothing: a, c, then b."""
    first, second = a_step(kept=kept), a_step(kept=kept)
    second.groups, second.discarded = [group("c", [1, 2], [3], kept=kept)], []
    second.rewards = [rewards(0.5, 0.75)]
    both = RecordedStep.joined([RecordedStep.of(first), RecordedStep.of(second)])
    assert both.prompts == [("a/2", 2), ("c/2", 2), ("b/2", 1)] and both.trained == 2
    assert both.tensors["token_ids"].tolist() == [5, 6, 7, 1, 2, 3, 8]
    assert both.tensors["sampler_logprobs"].tolist() == [-0.625, -0.75, -0.875, -0.125, -0.25, -0.375, -1.0]
    assert both.tensors["lengths"].tolist() == [2, 1, 2, 1, 1]
    assert both.tensors["finished"].tolist() == [True, False, True, False, False]
    assert both.tensors["rewards"].tolist() == [1.0, 0.1, 0.5, 0.75, 0.25]
    assert both.tensors["losses"].tolist() == [10.0, 20.0, 30.0] * 2
    if kept:
        assert both.tensors["kept_ids"].tolist() == [5, 6, 6, 7, 7, 8, 1, 2, 2, 3, 3, 4, 8, 9]
        assert both.tensors["kept_counts"].tolist() == [2] * 7


@pytest.mark.parametrize(
    ("name", "index", "place"),
    [
        ("rewards", 2, "b/2, sample 0"),
        ("advantages", 1, "a/2, sample 1"),
        ("losses", 1, "a/2, sample 0, token 1"),
        ("weights", 2, "a/2, sample 1, token 0"),
        ("token_ids", 3, "b/2, sample 0, token 0"),
        ("kept_ids", 5, "a/2, sample 1, token 0"),
    ],
)
def test_places_are_named(name, index, place):
    assert RecordedStep.of(a_step(kept=True)).place(name, index) == place


def test_a_step_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no record of step 4: none is there \(trainer.record_steps"):
        read_step(tmp_path, 4)
    for number in (1, 2):
        write_step(tmp_path, number, RecordedStep.of(a_step()), FACTS)
    with pytest.raises(ValueError, match="has no record of step 4: steps 1 to 2 are there"):
        read_step(tmp_path, 4)


@pytest.mark.parametrize("damage", ["cut", "json", "short", "metadata"])
def test_a_damaged_file_is_named(tmp_path, damage):
    from safetensors.torch import save_file

    step = RecordedStep.of(a_step())
    path = write_step(tmp_path, 1, step, FACTS)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "json":
        save_file(step.tensors, path, {"atrl": "{"})
    elif damage == "metadata":
        save_file(step.tensors, path)
    else:
        about = {"prompts": step.prompts, "trained": 1, "metrics": {}, **FACTS}
        save_file(step.tensors | {"losses": torch.zeros(2)}, path, {"atrl": json.dumps(about)})
    with pytest.raises(ValueError, match=rf"{step_path(tmp_path, 1)} is no record of a step \(") as caught:
        read_step(tmp_path, 1)
    assert "\n" not in str(caught.value)
    assert damage != "short" or "losses holds 2 values and not 3" in str(caught.value)


def changed(name: str, index: int, value: float) -> RecordedStep:
    step = RecordedStep.of(a_step())
    step.tensors[name][index] = value
    return step


def test_what_is_the_same_differs_in_nothing():
    found = compare_steps(RecordedStep.of(a_step()), RecordedStep.of(a_step()))
    assert [entry.name for entry in found] == [
        *("rewards", "advantages", "weights", "logprobs", "losses", "loss/policy", "loss/gradient_norm"),
    ]
    assert [entry.values for entry in found] == [3, 2, 3, 3, 3, 1, 1]
    assert all(entry.differ == 0 and entry.largest == 0.0 and entry.within(0.0) for entry in found)


@pytest.mark.parametrize(
    ("name", "index", "value", "gap", "place"),
    [
        ("rewards", 2, 0.5, 0.25, "b/2, sample 0"),
        ("advantages", 0, 0.0, 0.5, "a/2, sample 0"),
        ("weights", 1, 1.25, 0.25, "a/2, sample 0, token 1"),
        ("logprobs", 2, -2.0, 1.0, "a/2, sample 1, token 0"),
        ("losses", 0, float("nan"), float("inf"), "a/2, sample 0, token 0"),
    ],
)
def test_one_value_that_differs_is_found(name, index, value, gap, place):
    recorded = RecordedStep.of(a_step())
    found = {entry.name: entry for entry in compare_steps(recorded, changed(name, index, value))}
    entry = found.pop(name)
    assert (entry.differ, entry.largest, entry.place) == (1, gap, place)
    assert entry.recorded == recorded.tensors[name][index] and (entry.again == value or value != value)
    assert not entry.within(min(gap / 2, 1e9)) and entry.within(gap)
    assert not any(other.differ for other in found.values())


def test_the_largest_of_several_is_shown_and_the_last_bit_counts():
    recorded, again = RecordedStep.of(a_step()), RecordedStep.of(a_step())
    again.tensors["losses"] = torch.nextafter(again.tensors["losses"], torch.tensor(100.0))
    again.tensors["losses"][1] = 21.0
    entry = next(entry for entry in compare_steps(recorded, again) if entry.name == "losses")
    assert (entry.differ, entry.largest, entry.recorded, entry.again) == (3, 1.0, 20.0, 21.0)
    again.tensors["losses"][1] = 20.0
    entry = next(entry for entry in compare_steps(recorded, again) if entry.name == "losses")
    assert entry.differ == 2 and not entry.within(0.0)


def test_what_was_no_number_and_is_none_again_agrees():
    broken = changed("losses", 1, float("nan"))
    found = {entry.name: entry for entry in compare_steps(broken, broken)}
    assert (found["losses"].differ, found["losses"].largest) == (0, 0.0)
    healed = {entry.name: entry for entry in compare_steps(broken, RecordedStep.of(a_step()))}
    assert (healed["losses"].differ, healed["losses"].largest) == (1, float("inf"))


def test_metrics_and_numbers_of_values_are_compared():
    recorded, again = RecordedStep.of(a_step()), RecordedStep.of(a_step())
    again.metrics["loss/policy"] = 0.4
    again.tensors["weights"] = again.tensors["weights"][:2]
    found = {entry.name: entry for entry in compare_steps(recorded, again)}
    assert found["loss/policy"].largest == pytest.approx(0.3)
    assert (found["weights"].recorded, found["weights"].again) == ("3 values", "2 values")
    assert found["weights"].largest == float("inf") and found["weights"].differ == 3


def test_lists_are_the_same_or_not():
    places = ["x", "y"]
    same = compare_lists("ids", [[1, 2], [3]], [[1, 2], [3]], places)
    assert (same.values, same.differ, same.largest) == (3, 0, 0.0)
    other = compare_lists("ids", [[1, 2], [3]], [[1, 2], [4]], places)
    assert (other.differ, other.recorded, other.again, other.place) == (1, "3", "4", "y, token 0")
    longer = compare_lists("ids", [[1, 2], [3]], [[1, 2, 3], [3]], places)
    assert (longer.differ, longer.recorded, longer.again, longer.place) == (1, "2 tokens", "3 tokens", "x")
    missing = compare_lists("ids", [[1, 2], [3]], [[1, 2]], places)
    assert missing.differ == 1 and not missing.within(1e9)


def test_the_table_shows_what_differs():
    lines = table(compare_steps(RecordedStep.of(a_step()), changed("weights", 1, 1.25)))
    assert lines[0].split() == ["values", "differ", "largest", "recorded", "again", "where"]
    assert lines[1].split() == ["rewards", "3", "0", "0"]
    assert lines[3].split() == ["weights", "3", "1", "0.25", "1.5", "1.25", "a/2,", "sample", "0,", "token", "1"]

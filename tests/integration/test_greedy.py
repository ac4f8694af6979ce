"""Greedy accuracy beside the sampled one: what it is of, and that it changes nothing else."""

from __future__ import annotations

import json

import pytest

from atrl.callbacks.evaluate import EvaluateCallback
from tests.integration.conftest import Run
from tests.integration.test_training import moved, needs_vllm

OPTIONS = ("trainer.evaluate_samples=8", "trainer.grounding_samples=4", "optimizer.learning_rate=1e-3")


def texts(score) -> dict[str, list[str]]:
    """By problem the responses behind a score."""
    return {group.prompt.problem.id: list(group.texts) for group in score.groups}


def test_greedy_responses_depend_on_no_seed_and_sampled_ones_do(train) -> None:
    one, other = (train("rollout=transformers", "trainer.max_steps=1", *OPTIONS, f"seed={seed}", name=f"{seed}")
                  for seed in (0, 1))  # fmt: skip
    before, again = one.trained.greedy[0], other.trained.greedy[0]
    assert texts(before) == texts(again)
    assert {len(given) for given in texts(before).values()} == {1} and before.samples == 8
    assert texts(one.trained.before) != texts(other.trained.before)
    assert texts(one.trained.before) != texts(before)
    assert texts(one.trained.greedy[1]) != texts(before)  # a step at this rate changes some


@pytest.mark.parametrize("sampler", ["transformers", pytest.param("vllm", marks=needs_vllm)])
def test_measuring_it_changes_nothing_else_and_false_leaves_it_out(train, sampler) -> None:
    def done(greedy: bool) -> Run:
        more = (f"trainer.evaluate_greedy={str(greedy).lower()}", "trainer.evaluate_every=1")
        return train(f"rollout={sampler}", *OPTIONS, *more, name=str(greedy))

    with_it, without = done(True), done(False)
    assert without.trained.greedy == (None, None)
    assert "eval/greedy_accuracy" not in (without.folder / "metrics.csv").read_text()
    assert (with_it.folder / "metrics.csv").read_text().splitlines()[0].count("eval/greedy_accuracy") == 1
    assert moved(with_it.trained.module.policy.state_dict(), without.trained.module.policy.state_dict()) == set()
    for name in ("rollouts.jsonl", "grounding.json"):
        assert (with_it.folder / name).read_text() == (without.folder / name).read_text()
    for moment in ("before", "after"):
        assert texts(getattr(with_it.trained, moment)) == texts(getattr(without.trained, moment))


def test_what_was_measured_when_the_run_began_is_taken_over(train) -> None:
    """Also of a checkpoint from before greedy accuracies were: then there is none."""
    run = train("rollout=transformers", "trainer.max_steps=1", *OPTIONS)
    callback = EvaluateCallback([], samples=1, every=None, seed=0, greedy=True)
    state = json.loads((run.folder / "checkpoints" / "last" / "state.json").read_text())["callbacks"][
        "EvaluateCallback"
    ]
    callback.load_state_dict(state)
    assert callback.greedy_before.in_short() == run.trained.greedy[0].in_short()
    assert callback.before.in_short() == run.trained.before.in_short()
    callback.load_state_dict({"before": state["before"]})
    assert callback.greedy_before is None and callback.before.in_short() == run.trained.before.in_short()

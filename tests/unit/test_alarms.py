"""Bounds, step by step, and gradients that are not finite, in one process and divided among two."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from atrl import parallel
from atrl.alarms import Alarm, AlarmStop, Bound, NonFiniteStop, clip_gradients
from atrl.callbacks.alarms import AlarmCallback
from atrl.cli import user_message
from tests.unit.ranks import run_ranks
from tests.unit.test_sharding import batch_of, divided, loss_of, policy_of

NAME = "model.language_model.layers.1.mlp.up_proj.weight"


def verdicts(bound: Bound, values: list[float], patience: int = 1) -> list[str]:
    alarm = Alarm("x", bound, patience)
    return [alarm.look(value)[0] for value in values]


@pytest.mark.parametrize(
    ("bound", "values", "expected"),
    [
        # A bound itself is still fine, and a warning comes once as long as the metric stays beyond.
        (
            Bound(metric="m", warn=1.0, stop=2.0),
            [1.0, 1.1, 1.2, 0.9, 1.5, 2.0, 2.1],
            "fine warn fine fine warn fine stop",
        ),
        (Bound(metric="m", side="below", warn=1.0, stop=0.5), [1.0, 0.9, 0.5, 0.4], "fine warn fine stop"),
        (Bound(metric="m", warn=1.0), [5.0, 50.0], "warn fine"),
        (Bound(metric="m", stop=1.0), [0.5, 5.0], "fine stop"),
        (Bound(metric="m", stop=1.0), [math.nan], "stop"),
        (Bound(metric="m"), [math.nan, 1e9], "fine fine"),
        # The mean of the first two is 10.
        (
            Bound(metric="m", warn=2.0, stop=3.0, reference_steps=2),
            [5.0, 15.0, 20.0, 21.0, 31.0],
            "fine fine fine warn stop",
        ),
    ],
)
def test_verdicts(bound: Bound, values: list[float], expected: str) -> None:
    assert verdicts(bound, values) == expected.split()


def test_patience_counts_steps_in_a_row() -> None:
    bound = Bound(metric="m", warn=1.0, stop=2.0)
    assert verdicts(bound, [3, 3, 0, 3, 3, 3], patience=3) == ["fine"] * 5 + ["stop"]
    assert verdicts(bound, [1.5, 1.5, 1.5], patience=3) == ["fine", "fine", "warn"]


def test_the_line_names_alarm_metric_value_and_bound() -> None:
    alarm = Alarm("long", Bound(metric="length", stop=3.0, reference_steps=1, meaning="too much"), 1)
    alarm.look(10.0)
    assert alarm.look(40.0) == ("stop", "alarm long: length is 40, above 3 times the 10 of the first steps: too much")
    low = Alarm("low", Bound(metric="entropy", side="below", warn=0.5), 1)
    assert low.look(0.25) == ("warn", "alarm low: entropy is 0.25, below 0.5")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"warn": 2.0, "stop": 1.0}, "the bounds of m must be passed in the order warn, stop, got 2.0 and 1.0"),
        ({"warn": 1.0, "stop": 2.0, "side": "below"}, "the bounds of m must be passed in the order warn, stop"),
        ({"reference_steps": -1}, "reference_steps of m must be 0 or more"),
    ],
)
def test_bounds_that_make_no_sense(options: dict, line: str) -> None:
    with pytest.raises(ValueError, match=rf"^callbacks\.alarms: {line}"):
        Bound(metric="m", **options)


def test_what_a_resumed_run_knows_of_its_beginning() -> None:
    bound = Bound(metric="m", warn=2.0, stop=3.0, reference_steps=2)
    first, second = (AlarmCallback(bounds={"m": bound, "off": None}, patience=2) for _ in range(2))
    for value in (5.0, 15.0, 31.0):
        first._alarms["m"].look(value)
    second.load_state_dict(first.state_dict())
    assert second._alarms["m"].look(31.0)[0] == "stop"
    with pytest.raises(ValueError, match=r"^callbacks\.alarms\.patience must be at least 1"):
        AlarmCallback(patience=0)


def end_of_step() -> tuple[bool, str | None]:
    """On each rank, of a step that took rank r r seconds: whether it stops, and why."""
    alarms = AlarmCallback(bounds={"slow": Bound(metric="time/update", stop=0.5)}, patience=1)
    trainer = SimpleNamespace(callback_metrics={"loss/policy": 0.0}, should_stop=False)
    step = SimpleNamespace(step=3, metrics={"time/update": float(parallel.rank())})
    alarms.on_train_batch_end(trainer, SimpleNamespace(last_step=step), None, None, 2)
    return trainer.should_stop, alarms._cause


def test_all_ranks_stop_by_what_one_measured() -> None:
    """Seconds and memory are a rank's own; the others would wait for it for ever."""
    first, second = run_ranks(end_of_step)
    assert first == second == (True, "step 3: alarm slow: time/update is 1, above 0.5")
    assert end_of_step() == (False, None)


def test_an_alarm_is_a_message_for_the_user() -> None:
    assert user_message(AlarmStop("step 1: alarm"), Path("train.py")) == "step 1: alarm"
    assert AlarmStop.exit_code == NonFiniteStop.exit_code == 3


# Gradients.


def small_model() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1), torch.nn.Linear(5, 5))
    for value, parameter in enumerate(list(model.parameters())[:4], start=1):
        parameter.grad = torch.full_like(parameter, float(value))
    return model


def test_clipping_is_torchs_own() -> None:
    model, other = small_model(), small_model()
    norm = clip_gradients(model, 0.5, [torch.zeros(())])
    assert norm == float(torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5))
    assert norm == pytest.approx(math.sqrt(6 * 1 + 2 * 4 + 2 * 9 + 1 * 16))
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("loss", "what"), [(1.0, "the gradient is not finite, though"), (math.nan, "the loss is not")])
def test_what_was_not_finite_is_named(value: float, loss: float, what: str) -> None:
    model = small_model()
    model[1].weight.grad[0, 1] = value
    with pytest.raises(NonFiniteStop, match=rf"{what} .*gradient of 1 of 4 parameters, the first 1\.weight") as caught:
        clip_gradients(model, 1.0, [torch.tensor(0.0), torch.tensor(loss)])
    assert str(caught.value).startswith("alarm non_finite: ")
    assert torch.equal(model[0].weight.grad, torch.ones(2, 3))


def test_a_norm_that_overflows_is_told_from_a_broken_gradient() -> None:
    model = small_model()
    model[0].weight.grad.fill_(1e38)
    with pytest.raises(NonFiniteStop, match="every gradient is, and only their norm overflows"):
        clip_gradients(model, 1.0, [torch.zeros(())])


def clip_divided(checkpoint: Path, broken: bool) -> tuple[float, float, str]:
    """Norm, norm after clipping, and what is raised; the gradient is broken in one rank's part alone."""
    from atrl.sharding import own_part, whole

    policy = divided(checkpoint)
    loss_of(policy, batch_of(checkpoint, "square")).backward()
    gradient = policy.get_parameter(NAME).grad
    rank = torch.distributed.get_rank()
    if broken and rank == 1:
        own_part(gradient)[0, 0] = math.nan
    loss = torch.tensor(0.0)
    try:
        norm = clip_gradients(policy, 0.5, [loss])
    except NonFiniteStop as stop:
        return 0.0, 0.0, str(stop)
    gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    return norm, float(whole(torch.nn.utils.get_total_norm(gradients))), ""


def test_a_divided_gradient_is_clipped_by_the_norm_of_the_whole(checkpoint) -> None:
    (norm, after, _), other = run_ranks(clip_divided, checkpoint, False)
    policy = policy_of(checkpoint)
    # Both ranks have the same rows, and gradients are added up.
    (2 * loss_of(policy, batch_of(checkpoint, "square"))).backward()
    assert norm == other[0] == pytest.approx(clip_gradients(policy, 0.5, []), rel=1e-4)
    assert after == pytest.approx(0.5, rel=1e-4)


def test_all_ranks_stop_where_one_has_the_broken_part(checkpoint) -> None:
    (_, _, first), (_, _, second) = run_ranks(clip_divided, checkpoint, True)
    assert first == second
    assert f"the gradient is not finite, though the loss is (gradient of 1 of 68 parameters, the first {NAME})" in first


def test_nothing_is_no_multiple_of_nothing() -> None:
    """A metric that was 0 in the first steps is beyond a factor of that once it is above 0, and not before."""
    alarm = Alarm("clips", Bound(metric="loss/clip_share", warn=2, stop=3, reference_steps=2), patience=1)
    assert [alarm.look(value)[0] for value in (0.0, 0.0, 0.0, 0.1)] == ["fine", "fine", "fine", "stop"]

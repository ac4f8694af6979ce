"""Every alarm in a real training run: it warns, it stops with a checkpoint, and it leaves healthy runs alone."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning import Callback
from safetensors.torch import load_file

from atrl.alarms import AlarmStop, NonFiniteStop
from tests.integration.conftest import REPOSITORY, SMALL

OPTIONS = ("rollout=transformers", "trainer.evaluate_samples=0", "callbacks.alarms.patience=1")
BOUNDS = "callbacks.alarms.bounds"
NORM = "model.language_model.norm.weight"


class Poison(Callback):
    """Makes one gradient, or the loss, of step `step` not finite, and remembers the weights from before it.

    A gradient from the update on that is number `update` of the step.
    """

    poisons = {"loss": lambda loss: loss * math.nan, "value": lambda loss: loss + math.nan}  # noqa: RUF012

    def __init__(self, what: str, step: int, value: float, update: int = 0) -> None:
        self.what, self.step, self.value, self.update, self.before = what, step, value, update, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx != self.step:
            return
        self.before = {name: value.clone() for name, value in pl_module.policy.state_dict().items()}
        if self.what == "gradient":
            updates = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
            first = updates.completed + self.update
            pl_module.policy.lm_head.weight.register_hook(
                lambda grad: torch.full_like(grad, self.value) if updates.completed >= first else grad
            )
        else:
            objective, poison = pl_module.objective, self.poisons[self.what]
            pl_module.objective = type("Poisoned", (), {"__getattr__": lambda _, name: getattr(objective, name)})()

            def per_token(_, *args):
                losses, sums = objective.per_token(*args)
                return poison(losses), sums

            type(pl_module.objective).per_token = per_token


def stopped(train, *overrides: str, watch=None) -> tuple[str, Path, dict]:
    with pytest.raises(AlarmStop) as caught:
        train(*OPTIONS, *overrides, name="stopped", watch=watch)
    text = str(caught.value)
    folder = Path(text.rpartition("state in ")[2])
    return text, folder, load_file(folder / "rank_00000.safetensors")


@pytest.mark.parametrize(
    ("bounds", "metric"),
    [
        (("entropy_collapse.warn=20", "entropy_collapse.stop=10"), "loss/entropy"),
        (
            ("length_explosion.warn=0.001", "length_explosion.stop=0.01", "length_explosion.reference_steps=1"),
            "rollout/response_length is",
        ),
        (("mismatch.warn=0", "mismatch.stop=1e-12"), "rollout/logprob_gap_mean"),
        (("mismatch_max.warn=0", "mismatch_max.stop=1e-12"), "rollout/logprob_gap_max"),
    ],
    ids=["entropy", "length", "mismatch", "mismatch_max"],
)
def test_a_bound_stops_the_run_with_its_cause_and_a_checkpoint(train, bounds, metric: str) -> None:
    text, folder, saved = stopped(train, "trainer.max_steps=3", *(f"{BOUNDS}.{bound}" for bound in bounds))
    name = bounds[0].partition(".")[0]
    step = 2 if name == "length_explosion" else 1
    assert text.startswith(f"step {step}: alarm {name}: ") and metric in text
    assert saved[f"optimizer/step/{NORM}"] == step  # after the step, with its optimizer
    rows = (folder.parents[1] / "metrics.csv").read_text().splitlines()
    assert len(rows) == step + 1  # the step that set it off is on record


def test_the_share_of_clipped_tokens(train) -> None:
    options = ("algorithm.updates_per_batch=3", "optimizer.learning_rate=2e-2", "optimizer.warmup_steps=0")
    text, _, _ = stopped(train, *options, f"{BOUNDS}.clip_share.warn=0.001", f"{BOUNDS}.clip_share.stop=0.01")
    assert "alarm clip_share: loss/clip_share is" in text


def test_a_bound_warns_and_the_run_goes_on(train) -> None:
    with pytest.warns(UserWarning, match=r"step 1: alarm entropy_collapse: loss/entropy is .*, below 20"):
        run = train(*OPTIONS, f"{BOUNDS}.entropy_collapse.warn=20")
    assert run.trained.module.steps_done == 2
    assert run.trained.after is None and not run.trained.module.trainer.should_stop


def test_the_default_bounds_leave_the_demo_alone(train) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*alarm.*")
        run = train("rollout=transformers", "trainer.max_steps=6", "callbacks.alarms.patience=1")
    assert run.trained.module.steps_done == 6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(train, value: float) -> None:
    poison = Poison("gradient", 1, value)
    text, _, saved = stopped(train, watch=poison)
    assert text.startswith("step 2: alarm non_finite: the gradient is not finite, though the loss is")
    assert "the first model.language_model.embed_tokens.weight" in text
    tied = {"lm_head.weight"}
    for name, before in ((name, value) for name, value in poison.before.items() if name not in tied):
        assert torch.equal(saved[f"model/{name}"], before), name
    assert saved[f"optimizer/step/{NORM}"] == 1


@pytest.mark.parametrize("every", [1, None])
def test_the_state_between_two_updates_of_a_step_is_no_checkpoint(train, tmp_path, every: int | None) -> None:
    """The one after the step before stays as it was, where there is one."""
    poison = Poison("gradient", 1, float("nan"), update=1)
    options = ("algorithm.updates_per_batch=2", f"trainer.checkpoint_every={every or 'null'}")
    with pytest.raises(NonFiniteStop, match=r"^step 2: alarm non_finite: .*; the update was not taken") as caught:
        train(*OPTIONS, *options, watch=poison)
    folder = tmp_path / "run" / "checkpoints"
    if every is None:
        assert "state in" not in str(caught.value) and not folder.exists()
        return
    assert str(caught.value).endswith(f"; state in {folder / 'step_000001'}")
    saved = load_file(folder / "step_000001" / "rank_00000.safetensors")
    assert saved[f"optimizer/step/{NORM}"] == 2
    assert torch.equal(saved[f"model/{NORM}"], poison.before[NORM])


def test_a_loss_that_is_not_finite_is_told_from_a_gradient(train) -> None:
    poison = Poison("loss", 0, float("nan"))
    with pytest.raises(NonFiniteStop, match=r"^step 1: alarm non_finite: the loss is not finite") as caught:
        train(*OPTIONS, watch=poison)
    assert "state in" not in str(caught.value)  # before the first step there is nothing to save


def test_a_loss_that_is_not_finite_stops_where_its_gradient_is(train) -> None:
    text, _, _ = stopped(train, watch=Poison("value", 0, math.nan))
    assert text.startswith("step 1: alarm non_finite: the loss is nan, though the gradient is finite; state in ")


def test_without_the_callback_a_run_stops_all_the_same(train) -> None:
    """And leaves its last finished step."""
    poison = Poison("gradient", 1, float("nan"))
    with pytest.raises(NonFiniteStop, match=r"^step 2: alarm non_finite: .*; state in ") as caught:
        train(*OPTIONS[:2], "callbacks=none", "credit=none", watch=poison)
    saved = load_file(Path(str(caught.value).rpartition("state in ")[2]) / "rank_00000.safetensors")
    assert torch.equal(saved[f"model/{NORM}"], poison.before[NORM])


def test_the_command_line_says_it_in_one_line_and_exits_with_3(tmp_path: Path) -> None:
    options = (*OPTIONS, *SMALL, "logger=csv", "hydra.run.dir=run", f"{BOUNDS}.entropy_collapse.stop=10")
    command = [sys.executable, REPOSITORY / "train.py", *options, f"{BOUNDS}.entropy_collapse.warn=20"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 3
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1 and "alarm entropy_collapse" in errors[0]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "last" / "state.json").is_file()
    assert not (tmp_path / "outputs").exists()  # `outputs/latest` is for runs that finished


def test_a_stopped_run_goes_on_with_other_bounds(tmp_path: Path) -> None:
    """It needs no `resume_allow`: bounds change when a run ends, and not what it computes."""
    options = (*OPTIONS, *SMALL, "logger=csv", "hydra.run.dir=run", "resume=auto", "trainer.max_steps=3")

    def run(*more: str) -> subprocess.CompletedProcess:
        command = [sys.executable, REPOSITORY / "train.py", *options, "trainer.checkpoint_every=1", *more]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    stop = run(f"{BOUNDS}.mismatch.warn=0", f"{BOUNDS}.mismatch.stop=1e-12", "callbacks.alarms.patience=2")
    assert stop.returncode == 3, stop.stderr
    assert "error: step 2: alarm mismatch: " in stop.stderr
    # The step before is kept beside the one that set the alarm off.
    assert {path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*")} == {"step_000001", "step_000002"}
    done = run()
    assert done.returncode == 0, done.stderr
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert sum(bool(row["loss/policy"]) for row in csv.DictReader(file)) == 3

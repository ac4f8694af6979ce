"""When a run that breaks off has a state that can be saved, and when it hasn't."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback

from atrl.alarms import AlarmStop
from atrl.callbacks.checkpoint import CheckpointCallback, states_of


def broken_off(folder: Path, *, done: int, begun: int, completed: int, at_rest: tuple[int, int]) -> CheckpointCallback:
    """After `done` steps and so many optimizer steps begun and completed; the last step ended with `at_rest`."""
    saving = CheckpointCallback(
        folder, every=None, keep_best=0, loader=None, evaluation=None, settings={}, started=0.0, start=None
    )
    total = SimpleNamespace(ready=begun, completed=completed)
    progress = SimpleNamespace(optim_step_progress=SimpleNamespace(total=total))
    saving._trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(steps_done=done, policy=None),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(manual_optimization=progress)),
    )
    saving._at_rest = at_rest
    return saving


CASES = {
    "between two steps": ((3, 3, 3, (3, 3)), 3),
    "before the next step's first update": ((3, 6, 6, (3, 6)), 3),
    "within an optimizer step": ((3, 4, 3, (3, 3)), None),
    "between two updates of a step": ((3, 7, 7, (3, 6)), None),
    "after a step's last update, before its end": ((4, 8, 8, (3, 6)), 4),
}


@pytest.mark.parametrize("case", CASES)
def test_the_state_is_that_of_a_step_or_of_none(case: str, tmp_path: Path) -> None:
    (done, begun, completed, at_rest), expected = CASES[case]
    saving = broken_off(tmp_path, done=done, begun=begun, completed=completed, at_rest=at_rest)
    assert saving._finished_step() == expected


@pytest.mark.parametrize("sharded", [False, True])
def test_of_a_policy_that_other_ranks_hold_parts_of_nothing_is_saved(monkeypatch, tmp_path: Path, sharded) -> None:
    written = []
    saving = broken_off(tmp_path, done=2, begun=2, completed=2, at_rest=(2, 2))
    monkeypatch.setattr("atrl.callbacks.checkpoint.is_sharded", lambda policy: sharded)
    monkeypatch.setattr(saving, "_write", lambda *args, still: written.append(still()))
    said = saving.rescue()
    assert said == "no finished step could be saved"  # `_write` makes none here
    assert written == ([] if sharded else [True])


@pytest.mark.parametrize(
    ("error", "rescued"), [(RuntimeError("broken"), True), (AlarmStop("alarm"), False), (KeyboardInterrupt(), False)]
)
def test_who_saves_when_a_run_ends_early(monkeypatch, tmp_path: Path, error: BaseException, rescued: bool) -> None:
    """An alarm saves by itself, all ranks together; and Ctrl-C is to end at once."""
    asked = []
    saving = broken_off(tmp_path, done=2, begun=2, completed=2, at_rest=(2, 2))
    monkeypatch.setattr(saving, "rescue", lambda: asked.append(True) or "saved")
    saving.on_exception(None, None, error)
    assert bool(asked) == rescued


class Keeping(Callback):
    """A callback of a user's own."""

    def __init__(self, state) -> None:
        self.state = state

    def state_dict(self):
        return self.state


def test_what_callbacks_keep_is_refused_before_training_where_it_can_not_be_kept(tmp_path: Path) -> None:
    saving = broken_off(tmp_path, done=0, begun=0, completed=0, at_rest=(0, 0))
    trainer = saving._trainer
    trainer.callbacks = [saving, Keeping({"best": torch.tensor(1.0)})]
    with pytest.raises(ValueError, match=r"^callbacks: what Keeping\.state_dict returns .*Tensor.*: let it return"):
        saving.on_train_start(trainer, trainer.lightning_module)
    assert states_of([saving, Keeping({"best": [1.0, None]})]) == {"Keeping": {"best": [1.0, None]}}


class Named(Keeping):
    """Of which there may be several."""

    @property
    def state_key(self) -> str:
        return f"Named {self.state}"


def test_several_callbacks_of_a_class_keep_what_is_theirs_where_they_say_which_is_which() -> None:
    assert states_of([Named([1]), Named([2])]) == {"Named [1]": [1], "Named [2]": [2]}

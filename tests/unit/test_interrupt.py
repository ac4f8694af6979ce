"""A run that is told to end, where there is nothing to save."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from atrl.callbacks.interrupt import InterruptCallback
from atrl.interrupts import SIGNALS, Interrupted


@pytest.fixture(autouse=True)
def own_handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("name", "spoken", "code"), [("SIGINT", "Ctrl-C", 130), ("SIGTERM", "SIGTERM", 143)])
def test_a_warm_up_is_left_at_once(name: str, spoken: str, code: int) -> None:
    callback, module = InterruptCallback(None), SimpleNamespace()
    callback.on_train_start(None, module)
    with pytest.raises(Interrupted) as told:
        os.kill(os.getpid(), signal.Signals[name])
    assert not isinstance(told.value, Exception) and told.value.exit_code == code
    callback.on_exception(None, module, told.value)
    assert str(told.value) == f"interrupted by {spoken} in the warm-up, of which nothing is kept"
    os.kill(os.getpid(), signal.Signals[name])  # no second one disturbs what is left to do


def test_another_error_is_left_alone() -> None:
    error, before = ValueError("x"), signal.getsignal(signal.SIGTERM)
    InterruptCallback(None).on_exception(None, SimpleNamespace(), error)
    assert str(error) == "x" and signal.getsignal(signal.SIGTERM) is before

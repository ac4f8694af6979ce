"""The sums of `benchmarks/credit_overhead.py`."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from tests.unit.test_step_benchmark import FOLDER, script


def test_each_variant_is_charged_the_rollouts_of_its_round():
    """They took 1 second in the first round, for `none`, and 2 in the next, for `worker`; handing them on took none."""
    taken = SimpleNamespace(
        seconds={"none": [3.0, 4.0], "worker": [4.0, 6.5], "inline": [6.0, 8.0]},
        rollout_seconds={"none": [1.0, 0.0], "worker": [0.0, 2.0], "inline": [0.0, 0.0]},
    )
    whole = script("credit_overhead").with_rollouts(taken)
    assert whole == {"none": [3.0, 6.0], "worker": [5.0, 6.5], "inline": [7.0, 10.0]}


def test_a_round_draws_its_rollouts_once():
    """Those of the next seed are new ones."""
    asked = []
    source = SimpleNamespace(generate=lambda prompts, seed: asked.append((prompts, seed)) or [f"{prompts} {seed}"])
    rollouts = script("rotation").DrawnOnce(source)
    found = [rollouts.generate("p", seed=seed) for seed in ("0", "0", "0", "1", "1")]
    assert found == [["p 0"]] * 3 + [["p 1"]] * 2 and asked == [("p", "0"), ("p", "1")]


def test_the_probe_s_arithmetic_by_hand(monkeypatch):
    """One layer of one head of 128, width 128, feed-forward 256, vocabulary 1,000; 10 image and 4 response tokens.

    142 tokens: projections 8 · 128², feed-forward 6 · 128 · 256, attention 4 · 128 · 71 each; logits 2 · 4 · 128,000.
    The probe looks at 4 · (142 + 10) places, or 4 · 10: scores 256 each, softmax 5; reductions 6 · 4 · 10 + 16.
    """
    benchmark = script("credit_overhead")
    monkeypatch.setitem(benchmark.SHAPES, "hand", (1, 128, 1, 1, 256, 1000))
    forward = 142 * (131072 + 196608 + 36352) + 1_024_000
    assert benchmark.arithmetic_fraction("hand", 10, 4) == pytest.approx((608 * 261 + 256) / (3 * forward))
    kept = benchmark.arithmetic_fraction("hand", 10, 4, kept=True)
    assert kept == pytest.approx((40 * 261 + 256) / (3 * forward))


def test_variants_are_compared_round_by_round(monkeypatch):
    """After rollouts of 1 second: 2, 2 and 5 without credit, 1, 2 and 3 more of the worker, 5 more without one."""
    monkeypatch.syspath_prepend(FOLDER)
    taken = SimpleNamespace(
        seconds={"none": [3.0, 3.0, 6.0], "idle": [4.0, 5.0, 9.0], "inline": [8.0, 8.0, 11.0]},
        rollout_seconds={name: [1.0] * 3 for name in ("none", "idle", "inline")},
        credit_seconds={"none": [0.0] * 3, "idle": [1.0, 2.0, 9.0], "inline": [4.0] * 3},
    )
    found = script("late_worker").compared(taken)
    assert found["seconds"] == {"none": 2.0, "idle": 4.0, "inline": 7.0}
    assert found["credit_seconds"] == {"none": 0.0, "idle": 2.0, "inline": 4.0}
    assert found["longer_than_none"] == {"idle": 2.0, "inline": 5.0}
    assert found["longer_than_idle"] == {"none": -2.0, "inline": 3.0}
    assert found["longer_than_none_ci95"] == {"idle": [1.0, 3.0], "inline": [5.0, 5.0]}


def test_busy_processes_end_with_the_measurement(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    before = psutil.Process().children()
    with script("late_worker").busy_processes(2):
        started = set(psutil.Process().children()) - set(before)
        assert len(started) == 2 and all(process.status() != psutil.STATUS_ZOMBIE for process in started)
    assert not any(process.is_running() for process in started)

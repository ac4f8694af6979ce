"""The sums of `benchmarks/credit_overhead.py`, and what it prints."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from tests.unit.test_step_benchmark import script, scripts_find_each_other  # noqa: F401


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


@pytest.fixture
def overhead(monkeypatch, tmp_path):
    """The script with little to measure, in a folder of its own: steps of 2 seconds, 2.2 with a worker, 2.4 without,
    2.1 by four heads."""
    module = script("credit_overhead")
    seconds = {"none": [2.0] * 3, "worker": [2.2] * 3, "inline": [2.4] * 3, "four_heads": [2.1] * 3}
    nothing, credit = {name: [0.0] * 3 for name in seconds}, {"none": [0.0], "worker": [0.2], "inline": [0.3]}
    credit["four_heads"] = [0.1]
    taken = SimpleNamespace(seconds=seconds, rollout_seconds=nothing, credit_seconds=credit)
    monkeypatch.setitem(sys.modules, "rotation", SimpleNamespace(train_in_rotation=lambda *arguments: taken))
    monkeypatch.setattr("atrl.credit.background.useful_workers", lambda: 1)
    monkeypatch.setattr("atrl.quiet.set_environment", lambda: None)  # it would be the other tests' too
    memory = {"plain": 100, "probe": 30, "output_attentions": 1100}
    monkeypatch.setattr(module, "in_a_fresh_process", lambda kind, trainer: memory[kind])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shares = {False: {"3b": 0.03, "7b": 0.07, "32b": 0.32}, True: {"3b": 0.01, "7b": 0.02, "32b": 0.1}}
    shares[8] = {"3b": 0.004, "7b": 0.005, "32b": 0.006}
    shown = lambda name, *sizes, kept=False, heads_read=None: shares[heads_read or kept][name]  # noqa: E731
    monkeypatch.setattr(module, "arithmetic_fraction", shown)
    clusters = module.clustering_milliseconds
    monkeypatch.setattr(module, "clustering_milliseconds", lambda: clusters(tokens=32, images=8, repeats=1))
    monkeypatch.chdir(tmp_path)
    return module


def test_the_last_line_is_one_json_object_and_is_kept(overhead, monkeypatch, tmp_path, capsys):
    """Others read these keys. 2.2 s are a tenth more than 2; of the eager kernel's 1100 bytes 100 are the pass's."""
    monkeypatch.setattr(sys, "argv", ["credit_overhead.py"])
    overhead.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["step_overhead_fraction"] == pytest.approx(0.1)
    assert found["step_overhead_ci95"] == pytest.approx([0.1, 0.1])
    assert found["step_overhead_fraction_inline"] == pytest.approx(0.2)
    assert found["step_overhead_fraction_four_heads"] == pytest.approx(0.05)
    assert found["step_overhead_ci95_four_heads"] == pytest.approx([0.05, 0.05])
    assert found["arithmetic_fraction_8_heads"] == {"3b": 0.004, "7b": 0.005, "32b": 0.006}
    assert found["arithmetic_fraction"] == {"3b": 0.03, "7b": 0.07, "32b": 0.32}
    assert found["arithmetic_fraction_kept"] == {"3b": 0.01, "7b": 0.02, "32b": 0.1}
    assert (found["probe_memory_bytes"], found["output_attentions_memory_bytes"]) == (30, 1000)
    assert isinstance(found["metis_milliseconds_per_1000_tokens"], float)
    assert json.loads((tmp_path / "outputs" / "credit_overhead.json").read_text()) == found


def test_the_json_goes_to_the_file_that_is_named(overhead, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["credit_overhead.py", "--output", "mine/found.json"])
    overhead.main()
    assert json.loads((tmp_path / "mine" / "found.json").read_text()) == json.loads(capsys.readouterr().out)
    assert not (tmp_path / "outputs").exists()


def test_on_a_gpu_the_run_trains_there_and_memory_is_the_gpu_s(overhead, monkeypatch, capsys):
    """Both are asked for the trainer, and the engine for its share."""
    asked, run = [], sys.modules["rotation"].train_in_rotation
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    monkeypatch.setattr(sys.modules["rotation"], "train_in_rotation", lambda *given: asked.append(given) or run(*given))
    monkeypatch.setattr(overhead, "in_a_fresh_process", lambda kind, trainer: asked.append(trainer) or 1)
    monkeypatch.setattr(sys, "argv", ["credit_overhead.py", "--engine-share", "0.3"])
    overhead.main()
    (_, _, settings), *memory = asked
    assert {"trainer=gpu", "rollout.sampler.gpu_memory_utilization=0.3"} < set(settings) and memory == ["gpu"] * 3
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["trainer"], found["gpu"]) == ("gpu", "H200")


def test_a_process_that_measures_memory_prints_a_number(overhead, monkeypatch, tmp_path, capsys):
    """The benchmark starts it, and reads its last line; a file it leaves alone."""
    monkeypatch.setattr(overhead, "measure_memory", lambda kind, device: {("probe", "cpu"): 30}[kind, device])
    monkeypatch.setattr(sys, "argv", ["credit_overhead.py", "--memory", "probe"])
    overhead.main()
    assert json.loads(capsys.readouterr().out) == 30 and not list(tmp_path.iterdir())


def test_the_probe_s_arithmetic_by_hand(monkeypatch):
    """One layer of one head of 128, width 128, feed-forward 256, vocabulary 1,000; 10 image and 4 response tokens.

    142 tokens: projections 8 · 128², feed-forward 6 · 128 · 256, attention 4 · 128 · 71 each; logits 2 · 4 · 128,000.
    The probe looks at 4 · (142 + 10) places, or 4 · 10: scores 256 each, softmax 5; reductions 6 · 4 · 10.
    """
    benchmark = script("credit_overhead")
    monkeypatch.setitem(benchmark.SHAPES, "hand", (1, 128, 1, 1, 256, 1000))
    forward = 142 * (131072 + 196608 + 36352) + 1_024_000
    assert benchmark.arithmetic_fraction("hand", 10, 4) == pytest.approx((608 * 261 + 240) / (3 * forward))
    kept = benchmark.arithmetic_fraction("hand", 10, 4, kept=True)
    assert kept == pytest.approx((40 * 261 + 240) / (3 * forward))
    three = benchmark.arithmetic_fraction("hand", 10, 4, heads_read=3)
    assert three == pytest.approx(3 * (608 * 261 + 240) / (3 * forward))


def test_few_heads_are_of_as_many_layers_as_there_are():
    spread = script("probe_step").spread
    assert spread(2, 4, 3) == ((0, 0), (2, 0)) and spread(3, 4, 3) == ((0, 0), (1, 0), (2, 0))
    assert spread(5, 4, 3) == ((0, 0), (1, 0), (2, 0), (3, 0), (0, 1))
    assert sorted(spread(12, 4, 3)) == [(layer, head) for layer in range(4) for head in range(3)]
    with pytest.raises(ValueError, match="--heads must be at most 12, the shape's 4 layers of 3, got 13"):
        spread(13, 4, 3)


def test_variants_are_compared_round_by_round():
    """After rollouts of 1 second: 2, 2 and 5 without credit, 1, 2 and 3 more of the worker, 5 more without one."""
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


def test_busy_processes_end_with_the_measurement():
    before = psutil.Process().children()
    with script("late_worker").busy_processes(2):
        started = set(psutil.Process().children()) - set(before)
        assert len(started) == 2 and all(process.status() != psutil.STATUS_ZOMBIE for process in started)
    assert not any(process.is_running() for process in started)

"""Runs that are killed and go on, as a user has them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from atrl.reference import REFERENCE
from tests.integration.conftest import REPOSITORY

OPTIONS = (
    *("rollout=transformers", "logger=csv", "seed=3", "resume=auto", "trainer.max_steps=5", "data.train_size=10"),
    *("trainer.checkpoint_every=2", "trainer.evaluate_samples=8", "trainer.evaluate_every=2"),
    *("trainer.grounding_samples=4", "rollout.prompts_per_step=4", "rollout.group_size=4", "optimizer.warmup_steps=1"),
)
"""Ten problems, four a step: the third step begins within the first pass and ends in the second."""

DAY_S = 86_400.0

ADAPTERS = ("model/lora=language", "model.lora.rank=4", "optimizer.learning_rate=2e-3", "trainer.max_steps=4")


def start(folder: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, REPOSITORY / "train.py", *OPTIONS, f"hydra.run.dir={folder}", *more],
        cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(folder: Path, *more: str) -> str:
    process = start(folder, *more)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def killed_after_the_checkpoint(folder: Path, step: int, *more: str) -> None:
    """Kill −9, all processes of the run, as soon as the checkpoint of `step` is there."""
    process = start(folder, *more)
    deadline = time.monotonic() + 240
    while not (folder / "checkpoints" / f"step_{step:06d}").is_dir():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def metrics_of(folder: Path) -> list[dict[str, str]]:
    """All but what the clock and the machine say."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    measured = ("time/", "memory/", "rollout/tokens_per_second")
    return [{key: value for key, value in row.items() if value and not key.startswith(measured)} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("resume") / "whole"
    finish(folder)
    return folder


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that trained adapters."""
    folder = tmp_path_factory.mktemp("resume") / "adapted"
    finish(folder, *ADAPTERS)
    return folder


def killed_and_finished(folder: Path, step: int, *more: str) -> dict[str, torch.Tensor]:
    """Tensors of the checkpoint of `step`, of a run in `folder` that is killed there and goes on a day late."""
    killed_after_the_checkpoint(folder, step, *more)
    held = load_file(folder / "checkpoints" / f"step_{step:06d}" / "rank_00000.safetensors")
    let_a_day_pass(folder)
    finish(folder, *more)
    return held


def let_a_day_pass(folder: Path) -> None:
    """In what the newest checkpoint says of the time until it, in all and by phase: no run of ours takes as long."""
    file = max((folder / "checkpoints").glob("step_*")) / "state.json"
    state = json.loads(file.read_text())
    state["seconds"] += DAY_S
    state["phases"] = {name: seconds + DAY_S for name, seconds in state["phases"].items()}
    file.write_text(json.dumps(state))


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def assert_same_bits(folder: Path, whole: Path) -> None:
    """In all that two runs left but what the clock and the machine say."""
    for name in ("model/model.safetensors", "rollouts.jsonl", "samples.jsonl", "grounding.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert metrics_of(folder) == metrics_of(whole)
    for key in ("accuracy", "steps", "tokens", "rewards", "rollout"):
        assert summary_of(folder)[key] == summary_of(whole)[key], key
    tensors = [load_file(run / "checkpoints" / "last" / "rank_00000.safetensors") for run in (whole, folder)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())


@pytest.mark.parametrize("step", [2, 4, 5])
def test_a_killed_run_goes_on_to_the_same_bits(whole: Path, tmp_path: Path, step: int) -> None:
    """After the fifth step evaluation, model and report are left to do. The time before the kill counts."""
    folder = tmp_path / "killed"
    killed_and_finished(folder, step)
    assert_same_bits(folder, whole)
    seconds = summary_of(folder)["seconds"]
    assert seconds.keys() == summary_of(whole)["seconds"].keys() and "update" in seconds
    assert all(DAY_S < taken < 2 * DAY_S for taken in seconds.values()), seconds


def test_one_that_is_killed_in_its_report_logs_its_last_evaluation_once(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    shutil.copytree(whole, folder, symlinks=True)
    (folder / "report.html").unlink()
    finish(folder)
    assert_same_bits(folder, whole)
    finish(folder)  # nothing is left to do, and nothing is cut
    assert metrics_of(folder) == metrics_of(whole)


def test_so_does_one_that_trains_adapters(adapted: Path, tmp_path: Path) -> None:
    """Adapters alone are kept, moved before the kill and after it; what they add is in the merged model."""
    folder = tmp_path / "killed"
    held = killed_and_finished(folder, 2, *ADAPTERS)
    assert_same_bits(folder, adapted)
    base = load_file(REPOSITORY / "src" / "atrl" / "models" / "tiny" / "model.safetensors")
    merged = load_file(folder / "model" / "model.safetensors")
    left, its = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (folder, adapted))
    assert left.keys() == its.keys() and all(torch.equal(left[name], value) for name, value in its.items())
    for name, value in left.items():
        layer, _, matrix = name.removeprefix("base_model.model.").partition(".lora_")
        before = held[f"model/{layer}.lora_{matrix[0]}.default.weight"]
        assert before.any() and not torch.equal(before, value), name
        assert not torch.equal(merged[f"{in_a_file(layer)}.weight"], base[f"{in_a_file(layer)}.weight"]), name
    names = {name.split("/")[-1] for name in held if name.startswith(("model/", "optimizer/"))}
    assert len(left) == len(names) == 2 * 7 * 3  # two matrices for each of seven layers in three blocks


def test_one_that_warmed_up_goes_on_with_its_own_reference(tmp_path: Path) -> None:
    """At a rate that moves nothing the policy stays the reference: the KL term is 0 after the warm-up, and later."""
    options = ("stage=sft_rl", "algorithm.kl_coefficient=0.1", "optimizer.learning_rate=1e-12", "credit=none")
    options += ("sft.steps=3", "sft.batch_size=4", "sft.warmup_steps=1", "data.selection_size=4")
    folder = tmp_path / "warmed"
    finish(folder, *options, "trainer.max_steps=1")
    finish(folder, *options, "trainer.max_steps=2", "resume_allow=[trainer.max_steps]")
    found = [float(row["loss/kl"]) for row in metrics_of(folder) if "loss/kl" in row]
    assert found == pytest.approx([0.0, 0.0], abs=1e-9)
    assert (folder / "checkpoints" / REFERENCE).is_file()


def in_a_file(layer: str) -> str:
    """The name of a layer of the language half in Qwen2.5-VL's files."""
    return layer.replace("model.language_model.", "model.")


def refusal(folder: Path, *options: str) -> str:
    """What is said before a model loads, of a run in `folder` that leaves all its files as they were."""
    from atrl import pipeline

    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        config = compose("train", [*OPTIONS, f"logger.csv.save_dir='{folder}'", *options])
    parts = pipeline.instantiate_parts(config, folder)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=r"^.+$") as refused:
        pipeline.starting_point(config, parts, pipeline.load_data(parts))
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return str(refused.value)


def test_what_is_trained_can_not_change_on_the_way(whole: Path, adapted: Path) -> None:
    """Whatever `resume_allow` says: the checkpoint holds no other weights."""
    four, every = 'adapters of rank 4 on "language"', "all weights"
    for folder, options, held, trains in (
        (adapted, (*ADAPTERS, "model.lora.rank=8"), four, 'adapters of rank 8 on "language"'),
        (adapted, (*ADAPTERS, "model.lora.modules=[q_proj]"), four, 'adapters of rank 4 on ["q_proj"]'),
        (adapted, (), four, every),
        (whole, ADAPTERS, every, four),
    ):
        checkpoint = (folder / "checkpoints" / "last").resolve()
        assert refusal(folder, *options, "resume_allow=[model,optimizer]") == (
            f"{checkpoint} holds {held}, and this run trains {trains}: set model.lora as it was, or start a new run, "
            "with model.path set to the folder of that run if it is finished"
        )


def test_adapters_go_on_beside_the_weights_that_they_were_trained_beside(adapted: Path, tmp_path: Path) -> None:
    """Named otherwise or not; what they were merged into is another model."""
    checkpoint = (adapted / "checkpoints" / "last").resolve()
    other = f"model.path={adapted}"
    said = refusal(adapted, *ADAPTERS, other)
    assert said.startswith(f'{checkpoint} is of a run with other settings: model.path was "tiny" and is "{adapted}".')
    assert said.endswith("Start a new run, or go on with resume_allow=[model.path]")
    assert refusal(adapted, *ADAPTERS, other, "resume_allow=[model.path]") == (
        f"{checkpoint} holds adapters that were trained beside other weights than those in {adapted / 'model'}: go on "
        "with the model that the run began with, model.path=tiny as it was then, or start a new run"
    )
    shutil.copytree(REPOSITORY / "src" / "atrl" / "models" / "tiny", tmp_path / "moved")
    said = finish(adapted, *ADAPTERS, f"model.path={tmp_path / 'moved'}", "resume_allow=[model.path]")
    assert "nothing is left to do" in said


def test_nothing_left_to_do_is_said_and_another_run_refused(whole: Path) -> None:
    assert "nothing is left to do" in finish(whole) and "step 5 of 5" in finish(whole)
    process = start(whole, "optimizer.learning_rate=1e-3")
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0 and "Traceback" not in errors
    assert "optimizer.learning_rate was 0.0002 and is 0.001" in errors
    assert (whole / "model" / "model.safetensors").is_file() and len(metrics_of(whole)) > 5


def test_what_may_change_counts_from_the_next_step_on(whole: Path, tmp_path: Path) -> None:
    """Two more steps at half the rate: of that the warm-up's one step leaves 1 - 0.9 · 4/5 at the sixth, and 0.1."""
    folder = tmp_path / "extended"
    shutil.copytree(whole, folder, symlinks=True)
    changed = ("trainer.max_steps=7", "optimizer.learning_rate=1e-4", "optimizer.decay_to=0.1")
    finish(folder, *changed, "resume_allow=[trainer.max_steps,optimizer]")
    found = [float(row["loss/learning_rate"]) for row in metrics_of(folder) if "loss/learning_rate" in row]
    assert found[5:] == pytest.approx([0.28e-4, 0.1e-4], rel=1e-6)


def test_a_run_is_not_begun_in_the_folder_of_another(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "used"
    shutil.copytree(whole, folder, symlinks=True)
    process = start(folder, "resume=null")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2 and "holds a run already (metrics.csv): add resume=auto to go on" in errors
    assert metrics_of(folder) == metrics_of(whole) and (folder / "checkpoints" / "step_000005").is_dir()


def test_divided_among_two_ranks_killed_and_finished_by_one(whole: Path, tmp_path: Path) -> None:
    """The same responses; what was learned differs by rounding."""
    folder = tmp_path / "moved"
    killed_after_the_checkpoint(
        folder, 2, "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true",
        "trainer.checkpoint_every=2", "trainer.evaluate_samples=8", "trainer.grounding_samples=4",
    )  # fmt: skip
    parts = [load_file(folder / "checkpoints" / "step_000002" / f"rank_{rank:05d}.safetensors") for rank in range(2)]
    whole_parts = load_file(whole / "checkpoints" / "last" / "rank_00000.safetensors")
    for name, value in whole_parts.items():
        if value.ndim and not name.startswith("random/"):
            assert parts[0][name].shape[0] + parts[1][name].shape[0] == value.shape[0], name
    finish(folder)
    start_weights, expected, got = (
        load_file(path / "model.safetensors")
        for path in (REPOSITORY / "src" / "atrl" / "models" / "tiny", whole / "model", folder / "model")
    )
    difference = sum(float((expected[name] - got[name]).square().sum()) for name in expected) ** 0.5
    moved = sum(float((expected[name] - start_weights[name]).square().sum()) for name in expected) ** 0.5
    assert moved > 0 and difference / moved < 1e-3
    rows = [(run / "rollouts.jsonl").read_text().splitlines() for run in (whole, folder)]
    assert [json.loads(row)["response"] for row in rows[0]] == [json.loads(row)["response"] for row in rows[1]]


def test_dynamic_sampling_of_two_processes_killed_and_finished_by_one(tmp_path: Path) -> None:
    """To the bits of one process: what was drawn before the kill is not drawn again, and counts once.

    The record of the first step, which the two processes left, is computed again by one, but for a loss that is added
    up rank by rank.
    """
    options = (
        *("algorithm=dapo", "algorithm.overlong=null", "rollout.group_size=2", "trainer.deterministic=true"),
        *("trainer.evaluate_samples=0", "trainer.grounding_samples=0", "trainer.threads=1", "trainer.max_steps=4"),
    )
    finish(tmp_path / "whole", *options)
    folder = tmp_path / "killed"
    killed_after_the_checkpoint(folder, 2, *options, "trainer.devices=2")
    finish(folder, *options)
    for name in ("model/model.safetensors", "rollouts.jsonl", "groups.jsonl"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    rows, expected = metrics_of(folder), metrics_of(tmp_path / "whole")
    counts = ("rollout/drawn_groups", "rollout/discarded_groups", "rollout/filled_up_groups")
    assert [[row[name] for name in counts] for row in rows] == [[row[name] for name in counts] for row in expected]
    assert sum(float(row["rollout/discarded_groups"]) for row in rows[:2]) > 0 < len(rows[2:])
    for key in ("steps", "tokens", "rewards"):
        assert summary_of(folder)[key] == summary_of(tmp_path / "whole")[key], key
    again = (f"run={folder}", "step=1", "tolerance=1e-6", f"hydra.run.dir={tmp_path / 'again'}")
    done = subprocess.run(
        [sys.executable, REPOSITORY / "replay.py", *again],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_best_checkpoints_stay(train) -> None:
    """Of five, scored after each step: the two best, the earlier of equals, and the last."""
    run = train(
        *("rollout=transformers", "trainer.max_steps=5", "trainer.evaluate_every=1", "trainer.keep_best=2"),
        *("trainer.grounding_samples=0", "trainer.evaluate_samples=16", "optimizer.learning_rate=2e-3"),
    )
    scores = json.loads((run.folder / "checkpoints" / "last" / "state.json").read_text())["scores"]
    rows = metrics_of(run.folder)
    logged = {f"step_{int(row['step']):06d}": float(row["eval/accuracy"]) for row in rows if "eval/accuracy" in row}
    assert len(logged) == 5 and scores.items() <= logged.items()
    best = sorted(logged, key=lambda name: (-logged[name], name))[:2]
    kept = {path.name for path in (run.folder / "checkpoints").glob("step_*")}
    assert kept == {*best, "step_000005"}

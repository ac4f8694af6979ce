"""Recorded steps computed again: exactly what was recorded, and whatever was changed since is noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import save_file

from tests.integration.conftest import REPOSITORY, compose_config
from tests.integration.test_command_line import run as command

OPTIONS = (
    *("rollout=transformers", "logger=csv", "seed=3", "trainer.max_steps=3", "trainer.evaluate_samples=4"),
    *("trainer.evaluate_every=1", "trainer.keep_best=3", "trainer.grounding_samples=0", "optimizer.warmup_steps=1"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4", "optimizer.micro_batch_size=8"),
)
"""Every step is evaluated, and so keeps its checkpoint."""

Replay = Callable[..., tuple[bool, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay")
    done = command("train.py", *OPTIONS, "hydra.run.dir=run", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy, for a test to change."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


@pytest.fixture
def replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Replay:
    """`replay(run, step, "key=value", …)` → whether all agrees, and what was printed."""

    def call(run: Path, step: int, *overrides: str) -> tuple[bool, str]:
        from atrl.replay.run import replay

        with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
            config = compose("replay", [f"run='{run}'", f"step={step}", *overrides])
        folder = tmp_path / f"replay_{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        capsys.readouterr()
        agrees = replay(config, folder)
        return agrees, capsys.readouterr().out

    return call


def change(run: Path, step: int, name: str, index: int, value: float) -> None:
    """Another value in the record of a step."""
    path = run / "steps" / f"{step:06d}.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    assert tensors[name][index] != value
    tensors[name][index] = value
    save_file(tensors, path, metadata)


def row(printed: str, name: str) -> list[str]:
    """Cells of the table's line that begins with `name`."""
    line = next(line for line in printed.splitlines() if line.startswith(f"{name}  "))
    return line.removeprefix(name).split()


def test_an_untouched_run_agrees_to_the_bit(run: Path, replay: Replay) -> None:
    for step, since in ((1, "the start of the run"), (3, "the checkpoint after step 2")):
        agrees, printed = replay(run, step, "sample=true")
        assert agrees and f"again from {since}" in printed and "agrees to the bit" in printed, printed
        for name in ("tokens (rollouts.jsonl)", "token ids, drawn again", "weights", "logprobs", "losses"):
            assert row(printed, name)[1:] == ["0", "0"] and int(row(printed, name)[0]) > 16 * 8, printed
        assert row(printed, "rewards")[:2] == ["16", "0"] and row(printed, "loss/gradient_norm") == ["1", "0", "0"]
    shutil.rmtree(run / "checkpoints")
    agrees, printed = replay(run, 3)
    assert agrees and "again from the start of the run" in printed and "drawn again" not in printed, printed


def test_a_step_takes_twenty_bytes_a_token_and_little_more(finished: Path) -> None:
    for path in sorted((finished / "steps").iterdir()):
        with safe_open(path, "pt") as file:
            tokens, responses = len(file.get_tensor("token_ids")), len(file.get_tensor("lengths"))
        assert path.stat().st_size <= 20 * tokens + 17 * responses + 2048
        assert path.stat().st_size < sum(
            len(line) for line in (finished / "rollouts.jsonl").read_text().splitlines(True)
        )
    assert len(list((finished / "steps").iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "index", "value", "shown"),
    [
        ("rewards", 5, 0.125, ["rewards", "rewards (rollouts.jsonl)"]),
        ("advantages", 2, 0.03125, ["advantages"]),
        ("weights", 7, 0.75, ["weights"]),
        ("logprobs", 7, -0.625, ["logprobs"]),
        ("losses", 7, -0.625, ["losses"]),
        ("token_ids", 7, 100, ["tokens (rollouts.jsonl)", "logprobs", "weights"]),
    ],
)
def test_a_changed_record_is_noticed(run: Path, replay: Replay, name, index, value, shown) -> None:
    change(run, 2, name, index, value)
    agrees, printed = replay(run, 2)
    assert not agrees and "differs" in printed.splitlines()[-1]
    for entry in shown:
        assert int(row(printed, entry)[1]) > 0, printed
    if name in ("advantages", "weights", "logprobs", "losses"):  # nothing else is off
        assert row(printed, name)[1] == "1" and f"{value:.9g}" in row(printed, name)[3], printed
        others = {"rewards", "advantages", "weights", "logprobs", "losses", "loss/policy", "loss/gradient_norm"}
        assert all(row(printed, other)[1] == "0" for other in others - {name})
    if name != "token_ids":
        return
    agrees, printed = replay(run, 2, "sample=true")
    assert row(printed, "token ids, drawn again")[1] == "1", printed


def test_an_earlier_step_that_differs_is_named(run: Path, replay: Replay) -> None:
    shutil.rmtree(run / "checkpoints")
    change(run, 1, "weights", 0, 0.123)
    agrees, printed = replay(run, 2)
    assert not agrees and "step 1 differs already" in printed
    assert all(row(printed, name)[1] == "0" for name in ("weights", "losses"))


def test_a_tolerance_lets_small_differences_pass(run: Path, replay: Replay) -> None:
    with safe_open(run / "steps" / "000001.safetensors", "pt") as file:
        weight = float(file.get_tensor("weights")[3])
    change(run, 1, "weights", 3, weight + 0.01)
    assert not replay(run, 1, "tolerance=0.005")[0]
    agrees, printed = replay(run, 1, "tolerance=0.02")
    assert agrees and "agrees to 0.02" in printed


def test_rollouts_that_were_changed_are_noticed(run: Path, replay: Replay) -> None:
    lines = (run / "rollouts.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[3]["reward"] += 1.0
    rows[5]["tokens"][2] = "?"
    (run / "rollouts.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    agrees, printed = replay(run, 1)
    assert not agrees
    assert row(printed, "rewards (rollouts.jsonl)")[1] == row(printed, "tokens (rollouts.jsonl)")[1] == "1"
    (run / "rollouts.jsonl").write_text("not JSON\n")
    with pytest.raises(ValueError, match="is not what a run writes"):
        replay(run, 1)
    (run / "rollouts.jsonl").unlink()
    assert replay(run, 1)[0]


def test_other_weights_of_the_policy_are_noticed(run: Path, replay: Replay) -> None:
    path = next((run / "checkpoints" / "step_000002").glob("rank_*.safetensors"))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    name = next(key for key in tensors if key.startswith("model/") and key.endswith("mlp.down_proj.weight"))
    tensors[name][0, 0] += 0.5
    save_file(tensors, path, metadata)
    agrees, printed = replay(run, 3)
    assert not agrees and int(row(printed, "logprobs")[1]) > 100


def test_other_settings_are_noticed(run: Path, replay: Replay) -> None:
    shutil.rmtree(run / "checkpoints")
    config = OmegaConf.load(run / "config.yaml")
    for key, value, step, name in (
        ("optimizer.learning_rate", 1e-3, 2, "logprobs"),
        ("credit.anchor_weight", 7.0, 1, "weights"),
        ("rollout.temperature", 1.1, 1, "logprobs"),
    ):
        other = OmegaConf.merge(config)
        OmegaConf.update(other, key, value)
        OmegaConf.save(other, run / "config.yaml")
        agrees, printed = replay(run, step)
        assert not agrees and int(row(printed, name)[1]) > 0, key
    OmegaConf.save(OmegaConf.merge(config, {"seed": 4}), run / "config.yaml")
    with pytest.raises(ValueError, match=r"step 1 of .* was recorded without problem .*replay with the data"):
        replay(run, 1)


@pytest.mark.parametrize(
    "overrides",
    [
        ("algorithm=dapo", "algorithm.dynamic_sampling.max_draws=3", "algorithm.correction.high=1.00001"),
        ("algorithm.updates_per_batch=2", "algorithm.kl_coefficient=0.05", "rollout.top_p=0.8", "credit=papo"),
        ("trainer.deterministic=true", "credit=entropy", "credit.within=batch", "rollout.top_k=6"),
        ("credit.heads=auto", "optimizer.micro_batch_size=5"),
    ],
    ids=["dapo", "updates", "deterministic", "heads"],
)
def test_every_kind_of_step_is_computed_again(train, replay: Replay, monkeypatch, tmp_path, overrides) -> None:
    from atrl.pipeline import write_settings

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ("rollout=transformers", "trainer.evaluate_samples=0", "algorithm/correction=token_truncate", *overrides)
    folder = train(*options).folder
    write_settings(compose_config(folder, *options), folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))  # what the run found is in its folder
    agrees, printed = replay(folder, 2)
    assert agrees and "agrees to the bit" in printed, printed


def test_the_command_says_by_its_exit_code_whether_all_agrees(run: Path) -> None:
    done = command("replay.py", "run=run", "step=2", "hydra.run.dir=again", folder=run.parent)
    assert done.returncode == 0 and "agrees to the bit" in done.stdout, done.stderr
    change(run, 2, "rewards", 0, 0.4321)
    done = command("replay.py", "run=run", "step=2", "hydra.run.dir=again", folder=run.parent)
    assert done.returncode == 1 and "0.4321" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["step=9"], "has no record of step 9: steps 1 to 3 are there"),
        (["step=0"], "step must be at least 1, got 0"),
        (["step=1", "run=nowhere"], "nowhere has no record of step 1"),
        (["step=1", "tolerance=-1"], "tolerance must be 0 (bit for bit) or more, got -1"),
        (["step=1", "stpe=2"], "stpe"),
        ([], "step is not set"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_replayed_is_one_line(finished: Path, arguments: list[str], says: str) -> None:
    done = command("replay.py", "run=run", "hydra.run.dir=refused", *arguments, folder=finished.parent)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and len(lines) == 1 and says in lines[0], done.stderr


def test_a_run_that_was_told_not_to_records_no_steps(train) -> None:
    folder = train("rollout=transformers", "trainer.evaluate_samples=0", "trainer.record_steps=false").folder
    assert not (folder / "steps").exists()


def test_numbers_of_threads_are_those_of_the_run(run: Path, replay: Replay) -> None:
    path = run / "steps" / "000001.safetensors"
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["atrl"])
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    before = torch.get_num_threads()
    save_file(tensors, path, {"atrl": json.dumps(about | {"threads": before + 1})})
    try:
        replay(run, 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)

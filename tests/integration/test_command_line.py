"""train.py and evaluate.py as a user runs them: what they leave, and what they say of bad input."""

from __future__ import annotations

import csv
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from atrl.tracking import METRIC_GROUPS
from tests import wandb_file
from tests.integration.conftest import REPOSITORY, needs_vllm

SUMMARY_KEYS = {
    "": {
        *("experiment", "seed", "steps", "device", "versions", "git_revision", "accuracy", "seconds", "tokens"),
        *("peak_memory_bytes", "credit", "rollout", "rewards"),
    },
    "accuracy": {"before", "after", "before_ci95", "after_ci95", "samples", "greedy", "paired"},
    "seconds": {"total", "rollout", "reward", "score", "credit", "update", "sync", "evaluate"},
    "tokens": {"generated", "trained"},
    "peak_memory_bytes": {"host", "device"},
    "credit": {
        *("scheme", "anchor_ratio", "num_clusters", "anchor_fraction", "overhead_fraction", "anchor_recall"),
    },
    "rollout": {"engine", "dropped_prompts"},
    "rewards": {"right", "wrong", "unparseable", "truncated"},
}
SMALL = (
    "logger=csv",
    *("trainer.max_steps=2", "trainer.evaluate_samples=8"),
    *("rollout.prompts_per_step=2", "rollout.group_size=4"),
)


def run(script: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, REPOSITORY / script, *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of a finished run, whose own folder is `chosen`."""
    folder = tmp_path_factory.mktemp("work")
    wandb = ("logger.wandb.mode=offline", "logger.wandb.log_model=true")
    done = run("train.py", "rollout=transformers", "seed=3", "hydra.run.dir=chosen", *SMALL[1:], *wandb, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr + done.stdout and "deprecat" not in done.stderr.lower()
    assert "sampled accuracy on 8 held-out problems" in done.stdout
    assert re.search(r"\n  greedy  0\.\d{3}  \[.*\]  →  0\.\d{3}  \[", done.stdout)
    assert re.search(
        r"\n  picture 0\.\d{3} with it, 0\.\d{3} blanked, 0\.\d{3} with another's  \(after, 8 of", done.stdout
    )
    return folder


def test_a_run_leaves_what_the_design_says(finished: Path) -> None:
    chosen = finished / "chosen"
    summary = json.loads((chosen / "summary.json").read_text())
    for section, keys in SUMMARY_KEYS.items():
        assert set(summary[section] if section else summary) == keys
    assert (summary["seed"], summary["steps"], summary["rollout"]["engine"]) == (3, 2, "transformers")
    assert sum(summary["rewards"].values()) == 2 * 2 * 4
    assert summary["accuracy"]["samples"] == summary["accuracy"]["greedy"]["samples"] == 8
    for name in (
        "config.yaml",
        "metrics.csv",
        "report.html",
        "checkpoints/last/state.json",
        "model/model.safetensors",
        "grounding.json",
    ):
        assert (chosen / name).is_file(), name
    assert (finished / "outputs" / "latest").resolve() == chosen.resolve()


def test_the_run_on_wandb_has_metrics_by_group_settings_rollouts_and_model(finished: Path) -> None:
    chosen = finished / "chosen"
    records = wandb_file.read_records(chosen / "wandb")
    start = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (start.run_group, list(start.tags), start.display_name) == ("demo", ["demo"], "demo_3")
    settings, summary = wandb_file.config(records), json.loads((chosen / "summary.json").read_text())
    assert settings["rollout"]["group_size"] == 4 and settings["versions"] == summary["versions"]
    assert settings["git_revision"] == summary["git_revision"]
    rows = wandb_file.history(records)
    on_wandb = {name for row in rows for name in row if "/" in name and not name.startswith("rollout/samples")}
    in_file = {name for row in metrics_of(chosen) for name in row}
    assert on_wandb - {"trainer/global_step"} == in_file - {"step", "epoch"}
    assert {name.split("/")[0] for name in on_wandb} - {"trainer"} == set(METRIC_GROUPS)
    assert [row["rollout/samples.nrows"] for row in rows if "rollout/samples.nrows" in row] == [2]
    kept = {artifact.type: artifact for artifact in wandb_file.artifacts(records)}
    assert kept.keys() == {"run_table", "model"}
    assert "model.safetensors" in {entry.path for entry in kept["model"].manifest.contents}


def test_every_rollout_is_written_with_weights_that_average_one(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "chosen" / "rollouts.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 2 * 4
    for row in rows:
        assert len(row["weights"]) == len(row["tokens"])
        assert sum(row["weights"]) / len(row["weights"]) == pytest.approx(1.0, abs=1e-4)
        assert {"question", "response", "reward", "parts", "status"} <= row.keys()
    assert any(len(set(row["weights"])) > 1 for row in rows)


def test_the_exported_model_loads_and_is_the_trained_one(finished: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(finished / "chosen" / "model")
    AutoProcessor.from_pretrained(finished / "chosen" / "model")
    checkpoint = load_file(finished / "chosen" / "checkpoints" / "last" / "rank_00000.safetensors")
    for name, value in model.named_parameters():
        assert torch.equal(value, checkpoint[f"model/{name}"]), name


def test_evaluate_scores_a_run_with_transformers(finished: Path) -> None:
    arguments = ("checkpoint=outputs/latest", "rollout=transformers", "limit=6", "samples=2")
    done = run("evaluate.py", *arguments, "hydra.run.dir=scored", folder=finished)
    assert done.returncode == 0, done.stderr
    result = json.loads((finished / "scored" / "evaluation.json").read_text())
    assert result == json.loads((finished / "outputs" / "latest" / "evaluation.json").read_text())
    assert (result["problems"], result["sampled"]["samples_per_problem"]) == (6, 2)
    assert sum(result["greedy"]["statuses"].values()) == 6
    assert sum(result["sampled"]["statuses"].values()) == 12
    low, high = result["greedy"]["ci95"]
    assert 0 <= low <= result["greedy"]["accuracy"] <= high <= 1


def metrics_of(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def run_on_two_nodes(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Both on this machine, each with a torchrun of its own; what they printed together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ("--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}")
    torchrun = (sys.executable, "-m", "torch.distributed.run", *where)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    nodes = [
        subprocess.Popen([*torchrun, f"--node-rank={number}", REPOSITORY / "train.py", *arguments], **pipes)
        for number in range(2)
    ]
    outputs = [node.communicate(timeout=300) for node in nodes]
    printed, errors = ("".join(texts) for texts in zip(*outputs, strict=True))
    return subprocess.CompletedProcess(arguments, max(abs(node.returncode) for node in nodes), printed, errors)


@pytest.mark.parametrize("launcher", ["Lightning", "torchrun"])
def test_two_processes_train_like_one(finished: Path, tmp_path: Path, launcher: str) -> None:
    """The same problems, responses and weights; what is computed differs by rounding.

    Whole policies in two processes of one node that Lightning starts, and one that two nodes divide between them.
    """
    options = ["trainer.accelerator=cpu", "trainer.precision=32-true", "rollout=transformers", "seed=3", *SMALL]
    options.append("hydra.run.dir=two")
    if launcher == "Lightning":
        done = run("train.py", "trainer=ddp", "trainer.devices=2", *options, folder=tmp_path)
    else:
        where = ("trainer=fsdp", "trainer.devices=1", "trainer.num_nodes=2")
        done = run_on_two_nodes(*where, *options, folder=tmp_path)
        assert (tmp_path / "two" / "train_process_1.log").is_file()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out problems") == 1
    assert "Warning" not in done.stderr
    rows = [(folder / "rollouts.jsonl").read_text().splitlines() for folder in (finished / "chosen", tmp_path / "two")]
    one, two = ([json.loads(line) for line in lines] for lines in rows)
    assert [row["response"] for row in one] == [row["response"] for row in two]
    assert [row["weights"] for row in one] == [pytest.approx(row["weights"], abs=1e-4) for row in two]
    for whole, split in zip(metrics_of(finished / "chosen"), metrics_of(tmp_path / "two"), strict=True):
        names = {
            "loss/policy",
            "loss/entropy",
            "loss/gradient_norm",
            "reward/mean",
            "credit/weight_std",
            "eval/picture_blank",
        }
        assert split.keys() == whole.keys() and names & whole.keys()
        for name in names & whole.keys():
            assert split[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6), name
    summaries = [
        json.loads((folder / "summary.json").read_text()) for folder in (finished / "chosen", tmp_path / "two")
    ]
    for key in ("accuracy", "tokens", "rewards", "steps"):
        assert summaries[0][key] == summaries[1][key]


def test_a_divided_vision_tower_that_no_rank_needs_is_left_alone(tmp_path: Path) -> None:
    """As in one process: weight decay would move parameters whose gradients are zeros."""
    from safetensors.torch import load_file

    rows = [{"id": str(n), "problem": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(40)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
    problems = ("data=jsonl", "data.path=sums.jsonl", "data.images_column=null")
    options = ("optimizer.weight_decay=0.5", "optimizer.learning_rate=1e-2", "hydra.run.dir=text", *problems, *SMALL)
    done = run("train.py", "rollout=transformers", *where, *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = (
        load_file(folder / "model.safetensors")
        for folder in (REPOSITORY / "src" / "atrl" / "models" / "tiny", tmp_path / "text" / "model")
    )
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved and not any("visual" in name for name in moved)


def test_the_warm_up_alone(tmp_path: Path) -> None:
    options = ("stage=sft", "model=scratch", "sft.steps=2", "sft.evaluate_every=1", "data.selection_size=4")
    done = run("train.py", *options, "rollout=transformers", "hydra.run.dir=sft", *SMALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = metrics_of(tmp_path / "sft")
    assert sum("eval/selection_accuracy" in row for row in rows) == 2 and sum("loss/sft" in row for row in rows) == 2
    assert (tmp_path / "sft" / "model" / "model.safetensors").is_file()


def test_evaluate_measures_what_the_pictures_are_worth(finished: Path) -> None:
    """The model that ships reads: of 64 greedy answers 45 were right, 6 when blanked and 3 with another's picture."""
    arguments = ("checkpoint=tiny", "rollout=transformers", "limit=64", "samples=0")
    done = run("evaluate.py", *arguments, "hydra.run.dir=grounded", folder=finished)
    assert done.returncode == 0, done.stderr
    result = json.loads((finished / "grounded" / "evaluation.json").read_text())
    true, blank, swapped = (result["grounding"][name] for name in ("true", "blank", "swapped"))
    assert true["accuracy"] == result["greedy"]["accuracy"]
    assert {found["samples"] for found in (true, blank, swapped)} == {64}
    assert (result["grounding"]["left_out"], result["grounding"]["same_answer"]) == (0, 0)
    # Far apart: the intervals do not even come near each other.
    assert max(blank["ci95"][1], swapped["ci95"][1]) < true["ci95"][0] - 0.2
    rows = [json.loads(line) for line in (finished / "grounded" / "responses.jsonl").read_text().splitlines()]
    assert [row["mode"] for row in rows] == ["greedy"] * 64 + ["blank"] * 64 + ["swapped"] * 64
    for name in ("blank", "swapped"):
        assert f"  {name:8} {result['grounding'][name]['accuracy']:.3f}  [" in done.stdout
    done = run("evaluate.py", "compare=[grounded,grounded]", "hydra.run.dir=itself", folder=finished)
    assert done.returncode == 0 and "geometry, greedy, 64 problems in both\n" in done.stdout, done.stderr
    itself = json.loads((finished / "itself" / "comparison.json").read_text())
    assert itself["greedy"]["accuracy"] == [100 * true["accuracy"]] * 2 and "sampled" not in itself


def test_grounding_needs_pictures_to_exchange(finished: Path) -> None:
    path = problems_file(finished, [{**ROW, "id": name} for name in ("p1", "p2")], {"a.png": None})
    arguments = ("checkpoint=tiny", "rollout=transformers", "data=jsonl", path, "data.test_fraction=1")
    done = run("evaluate.py", *arguments, "grounding=true", folder=finished)
    assert_refused(done, ["grounding=true", "different pictures", "2 problems", "grounding=false"])
    more = ("samples=0", "hydra.run.dir=ungrounded", "rollout.max_prompt_tokens=8192")
    done = run("evaluate.py", *arguments, *more, folder=finished)
    assert done.returncode == 0 and "grounding: not measured" in done.stdout, done.stderr
    assert "the model was made for 2048 tokens: prompts of up to 1984 are asked" in done.stdout
    assert "grounding" not in json.loads((finished / "ungrounded" / "evaluation.json").read_text())


@needs_vllm
def test_evaluate_loads_the_exported_model_in_vllm(finished: Path) -> None:
    arguments = ("checkpoint=outputs/latest", "rollout=vllm", "limit=6", "samples=0")
    done = run("evaluate.py", *arguments, "hydra.run.dir=scored_vllm", folder=finished)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # neither the engine's log nor anybody's warnings
    with_vllm = json.loads((finished / "scored_vllm" / "evaluation.json").read_text())
    assert with_vllm["engine"] == "vllm"


def problems_file(folder: Path, rows: list[dict], images: dict[str, bytes | None]) -> str:
    for name, content in images.items():
        if content is None:
            Image.new("RGB", (32, 32), "red").save(folder / name)
        else:
            (folder / name).write_bytes(content)
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "data.path=problems.jsonl"


ROW = {"id": "p1", "problem": "<image>What is it?", "answer": "4", "images": ["a.png"]}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trainer.devices=20"], ["rollout.prompts_per_step", "20", "16"]),
        (["algorithm=gspo"], ["credit=atrl", "gspo_token"]),
        (["trainer.max_step=3"], ["trainer.max_step", "trainer.max_steps"]),
        (["credit=atlr"], ["atlr", "atrl"]),
        (["trainer.max_steps=many"], ["trainer.max_steps", "many"]),
        (["trainer.grounding_samples=-1"], ["trainer.grounding_samples", "-1", "0"]),
        (["trainer.evaluate_every=0"], ["trainer.evaluate_every", "0", "null"]),
        (["rollout.max_response_tokens=0"], ["rollout.max_response_tokens", "0"]),
        (["credit.heads=[[0,99]]"], ["credit.heads", "[0, 99]", "0 to 3"]),
        (["credit=hidden_cosine", "credit.layers=[0,7]"], ["credit.layers", "7", "0 to 2"]),
        (["credit=oracle", *("data=jsonl", "data.path=read.jsonl")], ["credit=oracle", "data=geometry"]),
        (["credit.reduction=peek"], ["credit.reduction", "peek", "peak"]),
        (["credit.anchor_ratio=1.5"], ["credit.anchor_ratio", "1.5"]),
        (["experiment=easy_vqu"], ["easy_vqu", "easy_vqa"]),
        (["model.path=no/where/at/all"], ["no/where/at/all"]),
        (["data=jsonl"], ["data.path"]),
        (["data=jsonl", "data.path=missing.jsonl"], ["missing.jsonl"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_a_bad_setting_is_one_line_that_names_it(arguments: list[str], says: list[str], tmp_path: Path) -> None:
    rows = [{**ROW, "id": f"p{number}"} for number in range(9)]
    (tmp_path / "read.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    done = run("train.py", *arguments, folder=tmp_path)
    assert_refused(done, says)


@pytest.mark.parametrize(
    ("rows", "images", "says"),
    [
        ([], {}, ["problems.jsonl"]),
        ([{**ROW, "answer": ""}], {"a.png": None}, ["p1", "answer"]),
        ([{"id": "p1", "question": "<image>?", "answer": "4", "images": []}], {}, ["problem", "question"]),
        ([ROW], {}, ["p1", "a.png"]),
        ([ROW], {"a.png": b"not a picture"}, ["p1", "a.png"]),
        ([{**ROW, "problem": "<image><image>?"}], {"a.png": None}, ["p1", "2", "1"]),
    ],
    ids=["empty", "no answer", "wrong column", "missing image", "unreadable image", "marks"],
)
def test_bad_data_is_one_line_that_names_it(rows, images, says, tmp_path: Path) -> None:
    path = problems_file(tmp_path, rows, images)
    done = run("train.py", "data=jsonl", path, "data.test_fraction=0", "trainer.evaluate_samples=0", folder=tmp_path)
    assert_refused(done, says)


def assert_refused(done: subprocess.CompletedProcess[str], says: list[str]) -> None:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode != 0
    assert "Traceback" not in done.stderr + done.stdout
    assert len(lines) == 1, done.stderr
    for word in says:
        assert word in lines[0]


SAMPLE = REPOSITORY.parent / "shared" / "data" / "problems_sample" / "problems.jsonl"


@needs_vllm
@pytest.mark.skipif(not SAMPLE.is_file(), reason="the sample of real problems is not here: ../shared/data")
def test_real_problems_with_pictures_of_every_size(tmp_path: Path) -> None:
    options = ("data=jsonl", f"data.path={SAMPLE}", "trainer.max_steps=2", "logger=csv", "hydra.run.dir=real")
    done = run("train.py", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "real" / "summary.json").read_text())
    assert sum(summary["rewards"].values()) == 2 * 16 * 8
    assert summary["credit"]["anchor_recall"] is None

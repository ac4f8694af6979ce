"""Loggers: what an offline W&B run keeps, read back from its file; tables, tags and names."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
from html import unescape
from pathlib import Path

import pytest
from lightning import Callback, Trainer
from PIL import Image
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))
import wandb_file

from atrl.metrics_file import MetricsFile
from atrl.prompt_module import PromptModule
from atrl.tracking import TABLE, KeepsFiles, ShownRollout, ShowsRollouts, TableSettings, wandb_logger

HOSTILE = "</div><script>alert(1)</script>"


@pytest.fixture
def finish():
    """W&B allows one run a process at a time."""
    import wandb

    yield wandb.finish
    wandb.finish()


def shown(**changes) -> ShownRollout:
    row = {
        "step": 1, "problem": "p", "status": "wrong", "reward": 0.5, "advantage": -1.0, "question": "q", "gold": "3",
        "tokens": ["a", HOSTILE, "b"], "weights": [0.6, 1.8, 0.6], "anchors": [False, True, False],
    }  # fmt: skip
    return ShownRollout(row | changes, [Image.new("RGB", (900, 300), "red"), Image.new("L", (20, 60))])


def content_of(artifact) -> dict[str, Path]:
    return {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}


@pytest.mark.parametrize(("key", "said"), [("a" * 40, "True"), ("short", "W&B: WANDB_API_KEY invalid: ")])
def test_whether_somebody_is_logged_in_is_asked_of_no_server(tmp_path: Path, key: str, said: str) -> None:
    """A run on a machine without a network would end there."""
    look = (
        "from atrl.tracking import logged_in\ntry:\n  print(logged_in())\nexcept ValueError as error:\n  print(error)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    with socket.create_server(("127.0.0.1", 0)) as server:
        environment |= {"HOME": str(tmp_path), "WANDB_API_KEY": key}
        environment |= {"WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}"}
        done = subprocess.run(
            [sys.executable, "-c", look], env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert done.stdout.startswith(said) and done.stdout.count("\n") == 1


def test_what_an_offline_run_keeps_is_in_its_folder(tmp_path: Path, finish) -> None:
    logger = wandb_logger(
        save_dir=str(tmp_path), mode="offline", name="n", group="sweep_1", tags=["seed=3"], log_model="all",
        table_tokens=2,
    )  # fmt: skip
    assert isinstance(logger, KeepsFiles) and isinstance(logger, ShowsRollouts)
    logger.log_hyperparams({"credit": {"anchor_ratio": 0.15}, "git_revision": "abc"})
    logger.log_metrics({"reward/mean": 0.25}, step=4)
    logger.log_rollouts([shown(), shown(anchors=None)], step=4)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("w" * 1000)
    logger.log_folder(tmp_path / "model", kind="model")
    logger.log_summary({"accuracy": {"after": 0.75}})
    finish()
    assert "WANDB_DATA_DIR" not in os.environ

    records = wandb_file.read_records(tmp_path / "wandb")
    run = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (run.run_group, list(run.tags), run.display_name) == ("sweep_1", ["seed=3"], "n")
    assert run.run_id == (tmp_path / "wandb_run_id").read_text().strip()
    settings = wandb_file.config(records)
    assert settings["credit"] == {"anchor_ratio": 0.15} and settings["git_revision"] == "abc"
    rows = wandb_file.history(records)
    assert {"reward/mean": 0.25, "trainer/global_step": 4}.items() <= rows[0].items()
    assert rows[1]["trainer/global_step"] == 4 and rows[1][f"{TABLE}.nrows"] == 2

    table, model = wandb_file.artifacts(records)
    for artifact in (table, model):  # else `wandb sync` could not find them
        for file in content_of(artifact).values():
            assert file.is_file() and file.is_relative_to(tmp_path / "wandb")
    assert (model.type, content_of(model).keys()) == ("model", {"weights"})
    summary = [
        item for record in records for item in record.summary.update if "summary" in (item.key, *item.nested_key)
    ]
    assert summary and json.loads(summary[-1].value_json) in (0.75, {"accuracy": {"after": 0.75}})

    files = content_of(table)
    (rows_file,) = [file for name, file in files.items() if name.endswith(".table.json")]
    content = json.loads(rows_file.read_text())
    first = dict(zip(content["columns"], content["data"][0], strict=True))
    assert {"step": 1, "status": "wrong", "reward": 0.5, "gold": "3"}.items() <= first.items()
    picture = Image.open(files[first["picture"]["path"]])
    assert picture.size == (448 + 20, 149)  # 900 × 300 fitted into 448, and what was small enough
    html = files[first["response"]["path"]].read_text()
    assert "<script" not in html and HOSTILE in unescape(html)
    assert html.count("<span") == 2 and "1 more tokens" in html  # of three tokens


def test_a_run_that_goes_on_is_the_same_run_on_wandb(tmp_path: Path, finish) -> None:
    for resume in (None, "auto"):
        logger = wandb_logger(save_dir=str(tmp_path), mode="offline", resume=resume)
        logger.log_metrics({"reward/mean": 0.5 if resume else 0.25}, step=1 if resume else 0)
        finish()
        started = int(time.time())
        while int(time.time()) == started:  # W&B names the parts of a run by the second
            time.sleep(0.05)
    records = wandb_file.read_records(tmp_path / "wandb")
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert len(runs) == 2 and runs[0].run_id == runs[1].run_id and all(run.resume for run in runs)
    assert [row["reward/mean"] for row in wandb_file.history(records)] == [0.25, 0.5]
    other = wandb_logger(save_dir=str(tmp_path), mode="offline")  # not resumed: another run
    assert other.version != runs[0].run_id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tags": ["x" * 65]}, r"logger\.wandb\.tags: 'x+' has 65 characters, and W&B takes 1 to 64"),
        ({"tags": [""]}, r"logger\.wandb\.tags: '' has 0 characters"),
        ({"table_every": 0}, r"logger\.wandb\.table_every must be at least 1, got 0"),
        ({"table_rollouts": -1}, r"logger\.wandb\.table_rollouts must be at least 0, got -1"),
    ],
)
def test_what_wandb_would_refuse_is_refused_first(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wandb_logger(save_dir=str(tmp_path), mode="offline", **options)
    assert not list(tmp_path.iterdir())


def test_when_a_table_is_due() -> None:
    settings = TableSettings(every=3, rollouts=1, tokens=10)
    assert [step for step in range(1, 9) if settings.is_due(step)] == [1, 4, 7]
    assert not TableSettings(every=1, rollouts=0, tokens=10).is_due(1)


def test_the_other_logger_by_one_override(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'atrl[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from atrl.tracking import tensorboard_logger

    logger = tensorboard_logger(save_dir=str(tmp_path))
    logger.log_metrics({"reward/mean": 0.5}, step=3)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(3, 0.5)]


def test_tensorboard_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    from atrl import tracking

    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"logger=tensorboard needs the package tensorboard: pip install 'atrl\["):
        tracking.tensorboard_logger(save_dir=str(tmp_path))


def test_a_step_that_has_no_value_does_not_repeat_the_one_before(tmp_path: Path) -> None:
    seen: list[list[set[str]]] = []

    class Logs(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            auc = {} if batch_idx == 1 else {"credit/anchor_auc": batch_idx / 4}
            pl_module.log_dict({"reward/mean": batch_idx / 8} | auc, batch_size=1)
            pl_module.log("of_all_steps", float(batch_idx), on_step=False, on_epoch=True, logger=False, batch_size=1)
            seen.append([set(trainer.callback_metrics), set(trainer.logged_metrics)])  # alarms, others' callbacks

    class Module(PromptModule):
        automatic_optimization = False

        def training_step(self, batch, batch_idx) -> None:
            return None

        def configure_optimizers(self) -> None:
            return None

    logger = MetricsFile(str(tmp_path), name="", version="")
    options = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=logger, callbacks=[Logs()], log_every_n_steps=1, **options
    )
    trainer.fit(Module(), DataLoader(range(3)))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["reward/mean"]]
    assert [(row["reward/mean"], row["credit/anchor_auc"]) for row in rows] == [
        ("0.0", "0.0"), ("0.125", ""), ("0.25", "0.5"),
    ]  # fmt: skip
    assert [["credit/anchor_auc" in names for names in kinds] for kinds in seen] == [
        [True] * 2,
        [False] * 2,
        [True] * 2,
    ]
    assert trainer.callback_metrics["of_all_steps"] == 1.0

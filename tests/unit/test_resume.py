"""Which checkpoint a run goes on from, whether it is of the same run, and what of its files is kept."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from atrl.checkpoint import Checkpoint
from atrl.own_code import own_sources
from atrl.pipeline import settings_to_keep
from atrl.resume import (
    check_same_base,
    check_same_run,
    check_unused,
    find_checkpoint,
    fingerprint,
    is_finished,
    keep_until,
    set_aside_later,
    weights_fingerprint,
)
from atrl.settings import flat, settings_of
from atrl.types import Problem
from tests.unit.refusals import refusal

CONFIG = {"seed": 0, "resume": None, "trainer": {"max_steps": 4, "devices": 1}, "credit": {"heads": [[0, 1]]}}
PROBLEMS = [Problem(id="a", question="1 + 1?", answer="2"), Problem(id="b", question="2 + 2?", answer="4")]


def put_checkpoint(root: Path, step: int) -> None:
    folder = root / f"step_{step:06d}"
    folder.mkdir(parents=True)
    (folder / "rank_00000.safetensors").touch()
    (folder / "state.json").write_text(json.dumps({"step": step, "format": 1, "ranks": 1}))


def made_with(config: dict = CONFIG, problems: list[Problem] = PROBLEMS) -> Checkpoint:
    settings = settings_of(OmegaConf.create(config))
    return Checkpoint(Path("old/step_000002"), {"config": settings, "data": fingerprint(problems)})


def test_auto_takes_the_newest_of_the_folder_if_there_is_one(tmp_path: Path) -> None:
    assert find_checkpoint(None, tmp_path) is None and find_checkpoint("auto", tmp_path) is None
    for step in (4, 12):
        put_checkpoint(tmp_path / "checkpoints", step)
    (tmp_path / "checkpoints" / "step_000099").mkdir()  # not complete
    assert find_checkpoint(None, tmp_path) is None
    assert find_checkpoint("auto", tmp_path).step == 12


def test_a_path_is_a_run_or_a_checkpoint(tmp_path: Path) -> None:
    for step in (4, 12):
        put_checkpoint(tmp_path / "run" / "checkpoints", step)
    elsewhere = tmp_path / "elsewhere"
    assert find_checkpoint(str(tmp_path / "run"), elsewhere).step == 12
    assert find_checkpoint(str(tmp_path / "run" / "checkpoints"), elsewhere).step == 12
    assert find_checkpoint(str(tmp_path / "run" / "checkpoints" / "step_000004"), elsewhere).step == 4
    with pytest.raises(ValueError, match="resume=/nowhere: no checkpoint there: name a run's folder"):
        find_checkpoint("/nowhere", elsewhere)


def changed(key: str, value) -> OmegaConf:
    config = OmegaConf.create(CONFIG)
    OmegaConf.update(config, key, value)
    return config


@pytest.mark.parametrize(
    "key, value", [("resume", "auto"), ("trainer.devices", 2), ("trainer.checkpoint_every", 3), ("logger", {"x": 1})]
)
def test_where_and_how_it_computes_may_change(key: str, value) -> None:
    assert refusal(check_same_run, made_with(), changed(key, value), PROBLEMS) is None


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("trainer.max_steps", 8, "trainer.max_steps was 4 and is 8"),
        ("credit.heads", None, r"credit.heads was \[\[0, 1\]\] and is null"),
        ("rollout.top", 1, "rollout.top was absent and is 1"),
    ],
)
def test_what_it_computes_may_change_by_name_alone(key: str, value, message: str) -> None:
    config = changed(key, value)
    with pytest.raises(ValueError, match=rf"{message}\. Start a new run, or go on with resume_allow=\[{key}\]"):
        check_same_run(made_with(), config, PROBLEMS)
    check_same_run(made_with(), config, PROBLEMS, allow=[key])
    check_same_run(made_with(), config, PROBLEMS, allow=[key.split(".")[0]])
    with pytest.raises(ValueError, match=message):
        check_same_run(made_with(), config, PROBLEMS, allow=["trainer.max", "seed"])


def test_other_code_of_ones_own_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scheme_of_a_run.py").write_text("class Scheme: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = changed("credit", {"_target_": "scheme_of_a_run.Scheme"})
    checkpoint = made_with(OmegaConf.to_container(config))
    checkpoint.state["sources"] = own_sources(config)
    assert refusal(check_same_run, checkpoint, config, PROBLEMS) is None
    (tmp_path / "scheme_of_a_run.py").write_text("class Scheme: power = 2\n")
    line = r"code: scheme_of_a_run changed since the checkpoint\. Start a new run, or go on with resume_allow=\[code\]"
    with pytest.raises(ValueError, match=line):
        check_same_run(checkpoint, config, PROBLEMS)
    check_same_run(checkpoint, config, PROBLEMS, allow=["code"])


def test_other_problems_are_another_run() -> None:
    other = [PROBLEMS[0], Problem(id="b", question="2 + 2?", answer="5")]
    with pytest.raises(ValueError, match=r"data_set: the training problems.*resume_allow=\[data_set\]"):
        check_same_run(made_with(), OmegaConf.create(CONFIG), other)
    check_same_run(made_with(), OmegaConf.create(CONFIG), other, allow=["data_set"])


def write_weights(folder: Path, megabytes: int, **changed: float) -> Path:
    """Three tensors in one file, each of so many MB: the first and the last are the file's ends."""
    import torch
    from safetensors.torch import save_file

    values = {"a_embedding": 1.0, "b_layer": 2.0, "c_tower": 3.0} | changed
    folder.mkdir()
    save_file(
        {name: torch.full((megabytes * 2**18,), value) for name, value in values.items()}, folder / "model.safetensors"
    )
    return folder


@pytest.mark.parametrize("megabytes", [2, 10])  # read whole, and by samples
def test_the_weights_beside_adapters_are_known_by_all_their_tensors(tmp_path: Path, megabytes: int) -> None:
    """Merging adapters changes layers, and neither the embedding nor the vision tower."""
    base, again = (write_weights(tmp_path / name, megabytes) for name in ("base", "again"))
    checkpoint = Checkpoint(
        Path("old/step_000002"), {"base": weights_fingerprint(base), "config": {"model": {"path": "outputs/latest"}}}
    )
    check_same_base(checkpoint, again)
    for name in ("a_embedding", "b_layer", "c_tower"):
        other = write_weights(tmp_path / name, megabytes, **{name: 4.0})
        with pytest.raises(ValueError, match=r"^old/step_000002 holds adapters .* than those in \S+: .*$") as refused:
            check_same_base(checkpoint, other)
        assert f"{other}: go on with the model that the run began with, model.path=outputs/latest as" in str(
            refused.value
        )
        check_same_base(Checkpoint(checkpoint.folder, {"config": {}}), other)  # all weights are in it


@pytest.mark.parametrize("stage, coefficient, needs", [("rl", 0.1, True), ("rl", 0.0, False), ("sft_rl", 0.1, False)])
def test_so_are_those_that_a_kl_term_compares_with(tmp_path: Path, stage: str, coefficient: float, needs: bool) -> None:
    """What a warm-up left is kept elsewhere."""
    base, other = write_weights(tmp_path / "base", 1), write_weights(tmp_path / "other", 1, b_layer=4.0)
    config = OmegaConf.create({"stage": stage, "algorithm": {"kl_coefficient": coefficient}, "model": {"path": "base"}})
    loaded = SimpleNamespace(folder=base, model=torch.nn.Linear(1, 1))
    checkpoint = Checkpoint(Path("old/step_000002"), settings_to_keep(config, SimpleNamespace(train=[]), loaded))
    check_same_base(checkpoint, base)
    refused = pytest.raises(ValueError, match=r"whose KL term compared with other .*path=base as")
    with refused if needs else nullcontext():
        check_same_base(checkpoint, other)


def test_nested_settings_by_hand() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}


def test_files_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    """Metrics count steps from 0, rollouts from 1; a line that was being written when the run was killed goes."""
    lines = [b"loss,step", b",0", b"0.5,0", b"0.4,1", b"0.3,2", b"0.2,1"]  # 12, cut off
    (tmp_path / "metrics.csv").write_bytes(b"\r\n".join(lines))
    rows = [json.dumps({"step": step}) for step in (1, 1, 2, 3)]
    (tmp_path / "rollouts.jsonl").write_text("\n".join([*rows, '{"step": 2, "pro']))
    keep_until(tmp_path, 2)
    assert (tmp_path / "metrics.csv").read_bytes() == b"\r\n".join([*lines[:4], b""])
    assert (tmp_path / "rollouts.jsonl").read_text() == "\n".join(rows[:3]) + "\n"
    keep_until(tmp_path, 0)
    assert (tmp_path / "metrics.csv").read_text() == "loss,step\n" and (tmp_path / "rollouts.jsonl").read_text() == ""


def test_the_warm_up_before_the_steps_stays(tmp_path: Path) -> None:
    """Its steps are counted in the same column. Without a checkpoint it begins again."""
    lines = ["eval/selection_accuracy,loss/policy,loss/sft,step", ",,0.9,0", "0.5,,,1", ",,0.7,7", ",0.1,,0", ",0.2,,3"]
    (tmp_path / "metrics.csv").write_text("\n".join([*lines, ",0.3"]))
    keep_until(tmp_path, 3)
    assert (tmp_path / "metrics.csv").read_text() == "\n".join([*lines[:-1], ""])
    keep_until(tmp_path, 0)
    assert (tmp_path / "metrics.csv").read_text() == lines[0] + "\n"


def test_what_is_logged_after_the_last_step_goes_where_it_comes_again(tmp_path: Path) -> None:
    """Not what was logged on the way, nor other metrics of that step."""
    lines = ["eval/accuracy,eval/picture_true,loss/policy,step", ",0.5,,0", ",0.6,,2", ",,0.1,1", "0.7,,,3", ",,0.2,2"]
    for more in ("", ",0.7,,3\n"):
        (tmp_path / "metrics.csv").write_text("\n".join([*lines, more]))
        keep_until(tmp_path, 3, ends_again=True)
        assert (tmp_path / "metrics.csv").read_text() == "\n".join([*lines, ""])
    (tmp_path / "metrics.csv").write_text("\n".join([*lines, more]))
    keep_until(tmp_path, 3)
    assert (tmp_path / "metrics.csv").read_text() == "\n".join([*lines, more])
    keep_until(tmp_path, 2)  # the policy after two steps is the checkpoint's
    assert (tmp_path / "metrics.csv").read_text() == "\n".join([*lines[:4], ""])
    keep_until(tmp_path, 0)  # what was measured before training comes again
    assert (tmp_path / "metrics.csv").read_text() == lines[0] + "\n"


@pytest.mark.parametrize("record", ["metrics.csv", "rollouts.jsonl", "checkpoints", "summary.json"])
def test_a_folder_that_holds_a_run_is_not_used_again_unasked(tmp_path: Path, record: str) -> None:
    for name in (".hydra", "train.log", "config.yaml"):  # Hydra's, and what a run leaves that was refused
        (tmp_path / name).touch()
    check_unused(tmp_path)
    (tmp_path / record).touch()
    line = rf"holds a run already \({record}\): add resume=auto to go on with it, or set another hydra\.run\.dir"
    with pytest.raises(ValueError, match=line):
        check_unused(tmp_path)


def test_a_run_is_finished_when_all_is_left_that_comes_after_its_steps(tmp_path: Path) -> None:
    for step in (2, 4):
        put_checkpoint(tmp_path / "run" / "checkpoints", step)
    last, elsewhere = find_checkpoint("auto", tmp_path / "run"), tmp_path / "elsewhere"
    for name in ("model", "summary.json", "report.html"):
        assert not is_finished(tmp_path / "run", last, 4) and not is_finished(tmp_path / "run", last, 5)
        (tmp_path / "run" / name).touch()
    assert is_finished(tmp_path / "run", last, 4) and not is_finished(tmp_path / "run", last, 5)
    assert is_finished(elsewhere, last, 4)  # another run's steps, of which nothing is to be added there


def test_what_comes_after_a_checkpoint_is_set_aside_when_its_steps_are_done_again(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    for step in (2, 4, 12):
        put_checkpoint(root, step)
    earlier = find_checkpoint(str(root / "step_000004"), tmp_path)
    assert set_aside_later(tmp_path / "elsewhere", earlier) == []
    assert set_aside_later(tmp_path, earlier) == ["step_000012"]
    assert find_checkpoint("auto", tmp_path).step == 4 and (root / "last").resolve() == root / "step_000004"
    assert (root / "abandoned" / "step_000012" / "state.json").is_file()
    assert set_aside_later(tmp_path, earlier) == []
    put_checkpoint(root, 12)
    assert set_aside_later(tmp_path, earlier) == ["step_000012"]


def test_the_metrics_file_goes_on(tmp_path: Path) -> None:
    from atrl.metrics_file import MetricsFile

    def log(metrics: dict[str, float], step: int, resume: str | None) -> str:
        logger = MetricsFile(str(tmp_path), resume=resume, name="", version="")
        logger.log_metrics(metrics, step=step)
        logger.save()
        return (tmp_path / "metrics.csv").read_text()

    assert log({"a": 1.0}, 0, "auto") == "a,step\n1.0,0\n"
    assert log({"a": 2.0}, 1, "auto") == "a,step\n1.0,0\n2.0,1\n"
    assert log({"b": 3.0}, 2, "auto") == "a,b,step\n1.0,,0\n2.0,,1\n,3.0,2\n"
    assert log({"a": 4.0}, 0, None) == "a,step\n4.0,0\n"


def test_a_rank_that_writes_no_metrics_leaves_the_file_to_the_first(tmp_path: Path, monkeypatch) -> None:
    """Which puts it in place of the old one meanwhile: read then, it is not there or half of it is."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from atrl.metrics_file import MetricsFile

    file = tmp_path / "metrics.csv"
    file.write_text("a,step\n1.0,0\n")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = MetricsFile(str(tmp_path), resume="auto", name="", version="")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("it was read"))
    logger.experiment.log_metrics({"a": 2.0}, step=1)
    assert file.read_bytes() == b"a,step\n1.0,0\n"


def test_a_run_that_goes_on_is_the_same_run_on_wandb(tmp_path: Path) -> None:
    from atrl.tracking import _run_id

    first = _run_id(tmp_path, goes_on=True)
    assert len(first) == 8 and _run_id(tmp_path, goes_on=True) == first
    assert _run_id(tmp_path, goes_on=False) != first


def test_the_best_of_an_earlier_part_of_the_run_still_count(tmp_path: Path) -> None:
    from atrl.callbacks.checkpoint import CheckpointCallback

    scores = {"step_000001": 0.9, "step_000002": 0.5, "step_000003": 0.9}
    for name in (*scores, "step_000004"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    saving = CheckpointCallback(
        tmp_path, every=None, keep_best=1, loader=None, evaluation=None, settings={}, started=0.0,
        start=Checkpoint(tmp_path, {"step": 4, "scores": scores}),
    )  # fmt: skip
    saving._delete_all_but("step_000004")
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step_000001", "step_000004"}

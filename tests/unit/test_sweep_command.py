"""The command that a sweep starts for a job."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from atrl.sweep.command import command, config_flags, inherited, key_of, quoted, tracking


@pytest.mark.parametrize(
    "text",
    ["plain", "with space", "it's", "a\\b", "end\\", "quote\\'s", "a,b=[c]{d}:e", "${seed}", "", "'", "'\\\\'", "ä–€"],
)
def test_quoted_text_comes_through_hydra_as_it_was(text):
    override = OverridesParser.create().parse_overrides([f"key={quoted(text)}"])[0]
    assert OmegaConf.create({"key": override.value()}).key == text


@pytest.mark.parametrize(
    ("override", "key"),
    [
        *(("seed=1", "seed"), ("+a.b=c=d", "a.b"), ("++x=1", "x"), ("~hydra.y", "hydra.y"), ("db@src=mysql", "db")),
        ("hydra/launcher=joblib", "hydra.launcher"),
    ],
)  # fmt: skip
def test_keys_of_overrides(override, key):
    assert key_of(override) == key


def test_jobs_inherit_what_is_not_the_sweeps():
    given = [
        "hydra.mode=MULTIRUN", "hydra.sweep.dir=x", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
        "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.searchpath=[file://more]", "hydra.run.dir=y",
        "hydra.verbose=true", "hydra.callbacks.sweep.baseline={a: b}",
    ]  # fmt: skip
    assert inherited(given) == ["hydra.searchpath=[file://more]", "hydra.verbose=true"]


def test_wandb_runs_are_put_together_unless_the_user_says_where():
    with_wandb = {"logger": {"csv": {}, "wandb": {}}}
    shown = ["credit.anchor_ratio=0.3", "seed=1"]
    found = tracking(with_wandb, shown, sweep="sweep_1", shown=shown)
    parsed = {item.get_key_element(): item.value() for item in OverridesParser.create().parse_overrides(found)}
    values = {key: [str(v) for v in value] if isinstance(value, list) else str(value) for key, value in parsed.items()}
    assert values == {
        "logger.wandb.group": "sweep_1",
        "logger.wandb.name": "credit.anchor_ratio=0.3 seed=1",
        "logger.wandb.tags": shown,
    }  # fmt: skip
    own = tracking(with_wandb, ["logger.wandb.group=mine", *shown], sweep="sweep_1", shown=shown)
    assert [key_of(text) for text in own] == ["logger.wandb.name", "logger.wandb.tags"]
    assert tracking({"logger": {"csv": {}}}, shown, sweep="s", shown=shown) == []
    assert tracking({"logger": None}, shown, sweep="s", shown=shown) == []


def test_tags_are_as_short_as_wandb_wants_them():
    (tags,) = [text for text in tracking({"logger": {"wandb": {}}}, [], sweep="s", shown=["x" * 99]) if "tags" in text]
    assert "x" * 64 in tags and "x" * 65 not in tags


def test_several_ranks_go_through_torchrun():
    script = Path("train.py")
    assert command(script, ["seed=1"]) == [sys.executable, "train.py", "seed=1"]
    assert command(script, ["seed=1"], ranks=3) == [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", "train.py", "seed=1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("python train.py --config-dir mine credit=a", ["--config-dir", "mine"]),
        ("python train.py -m -cd='my own' -cn other seed=0,1", ["-cd=my own", "-cn", "other"]),
        ("python train.py credit=a --config-path=/c --verbose", ["--config-path=/c"]),
        *((text, []) for text in ("python train.py -m name=--config-dir", "an 'open quote --config-dir x", "", None)),
    ],
)
def test_flags_that_say_where_configs_lie_are_read_from_a_command(text, flags):
    assert config_flags(text) == flags


def test_a_search_path_belongs_to_a_command_and_what_hydra_does_with_the_sweep_does_not():
    text = (
        "python train.py -m 'hydra.searchpath=[file:///my confs]' credit=mine hydra/launcher=joblib hydra.sweep.dir=x "
        "hydra.run.dir=y data.path=hydra.jsonl"
    )
    assert config_flags(text) == ["hydra.searchpath=[file:///my confs]"]

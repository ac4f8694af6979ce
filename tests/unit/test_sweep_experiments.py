"""Every job of every shipped ablation is a config that can be built, in full and in fast mode."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from atrl import pipeline
from atrl.config import check_config
from atrl.sweep.record import SweepRecord, plan_sweep

ROOT = Path(__file__).parents[2]
ABLATIONS = sorted(path.stem for path in (ROOT / "experiments").glob("ablation*.yaml"))
ISSUED = ["credit.anchor_ratio=0.05,0.15,0.3,0.5", "credit.num_clusters=2,4,8,16"]
"""What `experiment=ablation` leaves to the command line; others say themselves what they vary."""

JOBS = {
    "ablation": 4 * 4,
    "ablation_algorithms": 3 * 2,
    "ablation_anchor_ratio": 5,
    "ablation_anchor_ratio_clusters": 4 * 4,
    "ablation_clusters": 6,
    "ablation_frames": 3,
    "ablation_heads": 4 * 2,
    "ablation_low_connectivity": 3,
    "ablation_schemes": 14,
    "ablation_weight_range": 2 * 5,
}
"""How many settings each is to compare."""


def composed(overrides: list[str], folder: Path):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides, return_hydra_config=True)
    with open_dict(config):
        OmegaConf.set_readonly(config.hydra, False)
        config.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(config)
        return config


def planned(name: str, folder: Path) -> SweepRecord:
    """The sweep of one seed."""
    hydra = composed([f"experiment={name}"], folder).hydra
    overrides = [f"experiment={name}", *(ISSUED if name == "ablation" else []), "seed=0"]
    baseline = OmegaConf.to_container(hydra.callbacks.sweep).get("baseline")
    return plan_sweep(overrides, hydra.sweeper.params, grid=True, baseline=baseline)


def test_no_ablation_is_left_out():
    assert list(JOBS) == ABLATIONS


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_job_is_built(name, tmp_path):
    jobs = planned(name, tmp_path).jobs
    assert len(jobs) == JOBS[name]
    for job in jobs:
        full = composed(job, tmp_path)
        check_config(full)
        fast = composed([*job, "mode=fast"], tmp_path)
        pipeline.instantiate_parts(fast, tmp_path)
        assert (fast.trainer.max_steps, fast.sft.steps) == (8, 20)
        assert fast.experiment == full.experiment == name
        assert (fast.algorithm, fast.credit) == (full.algorithm, full.credit)


@pytest.mark.parametrize("name", ABLATIONS)
def test_three_seeds_are_the_default(name, tmp_path):
    hydra = composed([f"experiment={name}"], tmp_path).hydra
    assert hydra.sweeper.params.seed == "0,1,2"
    assert f"python train.py -m experiment={name}" in (ROOT / "experiments" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_baseline_is_among_what_is_compared(name, tmp_path):
    record = planned(name, tmp_path)
    for key, value in (record.baseline or {}).items():
        written = "null" if value is None else str(value)
        assert key in record.varied
        assert any(f"{key}={written}" in job for job in record.jobs), f"{key}={written}"


def test_frames_differ_in_number(tmp_path):
    """A video must have as many as are asked for."""
    for job in planned("ablation_frames", tmp_path).jobs:
        config = composed(job, tmp_path)
        assert config.rollout.video_frames <= config.data.seconds * config.data.fps == 64

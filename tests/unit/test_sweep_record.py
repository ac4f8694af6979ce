"""What a sweep knows of itself before its first job."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from atrl.sweep.record import Failure, SweepRecord, plan_sweep, read_failures

REPOSITORY = Path(__file__).parents[2]


def test_every_combination_is_a_job_and_the_command_line_wins():
    record = plan_sweep(
        ["experiment=ablation", "seed=0,1", "+credit.x=range(1,3)", "data.kinds=[read,slope]"],
        {"seed": "0,1,2", "credit": "atrl,uniform"}, grid=True, baseline={"credit": "uniform"},
    )  # fmt: skip
    assert record.varied == ["seed", "credit", "credit.x"]
    assert len(record.jobs) == 2 * 2 * 2
    assert record.jobs[1] == ["seed=0", "credit=atrl", "experiment=ablation", "+credit.x=2", "data.kinds=[read,slope]"]
    assert record.shown(record.jobs[1]) == ["seed=0", "credit=atrl", "+credit.x=2"]


def test_options_may_be_named_by_a_pattern():
    """As Hydra calls it, which knows the groups."""
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base=None):
        loader = GlobalHydra.instance().config_loader()
        record = plan_sweep(["algorithm=glob(gspo*)", "seed=0,1"], {}, grid=True, config_loader=loader)
    assert record.varied == ["algorithm", "seed"]
    assert record.jobs == [[f"algorithm={name}", f"seed={seed}"] for name in ("gspo", "gspo_token") for seed in (0, 1)]


def test_a_search_makes_its_jobs_up_as_it_goes():
    record = plan_sweep(["trainer=cpu"], {"optimizer.learning_rate": "tag(log, interval(1e-5, 1e-3))"}, grid=False)
    assert record.jobs is None and record.varied == ["optimizer.learning_rate"]


def test_it_is_read_as_it_was_written_and_a_new_start_forgets_failures(tmp_path):
    record = SweepRecord("python train.py -m seed=0,1", ["seed"], [["seed=0"], ["seed=1"]], {"credit": "uniform"})
    assert SweepRecord.read(tmp_path) is None and read_failures(tmp_path) == []
    record.write(tmp_path)
    assert SweepRecord.read(tmp_path) == record
    for number in (10, 2):
        Failure(number, f"seed={number}", "a\nb").write(tmp_path)
    assert [failure.number for failure in read_failures(tmp_path)] == [2, 10]
    record.write(tmp_path)
    assert read_failures(tmp_path) == []


@pytest.mark.parametrize("content", ["{", "[1]", '{"command": "x"}'])
def test_a_broken_record_is_named(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=r"sweep\.json can't be read"):
        SweepRecord.read(tmp_path)

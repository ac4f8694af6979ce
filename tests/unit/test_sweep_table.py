"""From the folders of a sweep to the rows of its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.axes import Axes

from atrl.composed import Composed
from atrl.report.metrics import Curve
from atrl.report.sweep.axes import find_axes, group_runs, shown_value
from atrl.report.sweep.curves import Band, band, chosen_rows, draw_curves
from atrl.report.sweep.grid import in_order, make_grid
from atrl.report.sweep.pending import pending
from atrl.report.sweep.runs import find_runs, holds_runs, read_run
from atrl.report.sweep.statistics import Estimate
from atrl.report.sweep.table import make_table
from atrl.sweep import end
from atrl.sweep.folder import note_asked
from atrl.sweep.record import SweepRecord
from tests.sweep_folder import write_job, write_sweep


@pytest.fixture
def jobs(tmp_path):
    """`jobs({...}, {...})` writes a folder for each and reads them back."""

    def write(*settings: dict):
        for number, one in enumerate(settings):
            write_job(tmp_path / str(number), number=number, **one)
        return find_runs([tmp_path])

    return write


# Which settings differ.


def test_seeds_are_no_axis_and_what_follows_from_them_is_none_either(jobs):
    runs = jobs({"seed": 0}, {"seed": 1})
    assert find_axes(runs) == []
    (group,) = group_runs(runs, [])
    assert sorted(group.runs) == [0, 1]


def test_without_hydras_record_a_seed_further_down_is_known_by_its_value(jobs, tmp_path):
    jobs({"seed": 0}, {"seed": 1})
    for folder in (tmp_path / "0", tmp_path / "1"):
        for file in (folder / ".hydra").iterdir():
            file.unlink()
    assert find_axes(find_runs([tmp_path])) == []


def test_what_refers_to_another_setting_is_no_axis_of_its_own(jobs, tmp_path):
    jobs({"trainer__max_steps": 3}, {"trainer__max_steps": 9})
    for number, steps in (("0", 3), ("1", 9)):
        for name, value in (("config.yaml", steps), (".hydra/config.yaml", "${trainer.max_steps}")):
            file = tmp_path / number / name
            config = yaml.safe_load(file.read_text()) | {"schedule": {"steps": value}}
            file.write_text(yaml.safe_dump(config))
    assert find_axes(find_runs([tmp_path])) == ["trainer.max_steps"]
    for number in "01":
        (tmp_path / number / ".hydra" / "config.yaml").unlink()
    assert find_axes(find_runs([tmp_path])) == ["schedule.steps", "trainer.max_steps"]


def test_where_and_how_it_computes_is_no_axis(jobs):
    runs = jobs({}, {"trainer__devices": 4, "experiment": "other"})
    assert find_axes(runs) == []


def test_a_setting_that_differs_is_one(jobs):
    runs = jobs({"credit__anchor_ratio": 0.3}, {"credit__anchor_ratio": 0.05}, {"trainer__max_steps": 5})
    assert find_axes(runs) == ["credit.anchor_ratio", "trainer.max_steps"]
    assert find_axes(runs, order=["trainer.max_steps"]) == ["trainer.max_steps", "credit.anchor_ratio"]
    assert [shown_value(run, "credit.anchor_ratio") for run in runs] == ["0.3", "0.05", "0.15"]


def test_a_components_own_settings_follow_from_it(jobs):
    """Uniform credit has no clusters: that is no difference of its own."""
    runs = jobs({"credit": "uniform"}, {"credit": "atrl"}, {"credit": "none"})
    assert find_axes(runs) == ["credit"]
    assert [shown_value(run, "credit") for run in runs] == ["uniform", "atrl", "none"]


def test_but_they_count_between_runs_that_have_it(jobs):
    runs = jobs({"credit": "uniform"}, {"credit__num_clusters": 4}, {"credit__num_clusters": 8})
    assert find_axes(runs) == ["credit", "credit.num_clusters"]
    assert [group.values for group in group_runs(runs, find_axes(runs))] == [
        ("uniform", None), ("atrl", "4"), ("atrl", "8"),
    ]  # fmt: skip


def test_without_hydras_record_a_component_is_named_by_its_class(jobs, tmp_path):
    jobs({"credit": "uniform"}, {"credit": "atrl"})
    for number in "01":
        (tmp_path / number / ".hydra" / "hydra.yaml").unlink()
    runs = find_runs([tmp_path])
    assert find_axes(runs) == ["credit"]
    assert [shown_value(run, "credit") for run in runs] == ["UniformCredit", "AtrlCredit"]


def test_a_command_that_was_refused_does_not_rename_the_run_in_its_folder(jobs, tmp_path):
    """Hydra writes down what it composes before anybody looks at the folder."""
    jobs({"credit": "atrl"}, {"credit": "uniform"})
    for number, own, asked in (("0", "atrl", "uniform"), ("1", "uniform", "atrl")):
        folder, choices = tmp_path / number, {"credit": own, "model": "scratch"}
        Composed([f"credit={own}", "seed=0"], choices, {"model.seed": "${seed}"}).write(folder)
        hydra = {"hydra": {"runtime": {"choices": choices | {"credit": asked}}}}
        (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(hydra))
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"credit={asked}", "seed=0"]))
        (folder / "job.json").unlink()
    runs = find_runs([tmp_path])
    assert [shown_value(run, "credit") for run in runs] == ["atrl", "uniform"]
    assert [row.commands for row in make_table(runs).rows] == [
        ["python train.py credit=atrl seed=0"], ["python train.py credit=uniform seed=0"],
    ]  # fmt: skip


def rewritten(file: Path, key: str, **values: Any) -> None:
    config = yaml.safe_load(file.read_text())
    config[key] = config.get(key, {}) | values
    file.write_text(yaml.safe_dump(config))


def test_a_class_that_was_changed_by_itself_is_an_axis(jobs, tmp_path):
    """`credit._target_=mine.Scheme` keeps the option's name: its runs are no other seeds of the option's."""
    jobs({"accuracy": 0.4}, {"accuracy": 0.9})
    rewritten(tmp_path / "1" / "config.yaml", "credit", _target_="mine.Scheme")
    runs = find_runs([tmp_path])
    assert find_axes(runs) == ["credit._target_"]
    assert [row.after.mean for row in make_table(runs).rows] == [0.4, 0.9]


def test_options_that_only_say_where_it_computes_are_no_axis(jobs, tmp_path):
    """trainer=cpu and trainer=ddp, with the same settings besides."""
    jobs({"seed": 0}, {"seed": 1})
    for number, option in (("0", "cpu"), ("1", "ddp")):
        rewritten(tmp_path / number / ".hydra" / "hydra.yaml", "hydra", runtime={"choices": {"trainer": option}})
    assert find_axes(find_runs([tmp_path])) == []


def test_what_refers_to_another_setting_in_some_runs_alone_is_an_axis(jobs, tmp_path):
    """`model.seed=5` beside runs in which it is `seed`'s."""
    jobs({"seed": 0}, {"seed": 1}, {"seed": 0, "model__seed": 5})
    rewritten(tmp_path / "2" / ".hydra" / "config.yaml", "model", seed=5)
    runs = find_runs([tmp_path])
    assert find_axes(runs) == ["model.seed"]
    assert [(group.values, sorted(group.runs)) for group in group_runs(runs, ["model.seed"])] == [
        (("${seed}",), [0, 1]), (("5",), [0]),
    ]  # fmt: skip


def test_how_a_run_was_composed_is_read_as_it_was_written(tmp_path):
    composed = Composed(["seed=3"], {"credit": "atrl", "mode": None}, {"model.seed": "${seed}"})
    composed.write(tmp_path)
    assert Composed.read(tmp_path) == composed
    (tmp_path / "composed.json").write_text("{")
    with pytest.raises(ValueError, match=r"composed\.json can't be read"):
        Composed.read(tmp_path)


# Rows.


def test_a_row_puts_seeds_together_by_hand(jobs):
    """0.5 and 0.7: mean 0.6, s = 0.1414, half 12.706·0.1 = 1.2706; curves 0.2 and 0.4."""
    runs = jobs({"seed": 0, "accuracy": 0.5, "curve": [0.1, 0.3]}, {"seed": 3, "accuracy": 0.7, "curve": [0.4, 0.4]})
    (row,) = make_table(runs).rows
    assert (row.seeds, row.missing) == ([0, 3], [])
    assert row.after.mean == pytest.approx(0.6) and row.after.half == pytest.approx(1.2706, abs=1e-4)
    assert row.curve.mean == pytest.approx(0.3)
    assert row.before.mean == 0.25 and row.before.equal  # both seeds began there, which shows no spread
    assert row.problems == 512
    assert row.memory == 2_310_000_000 and row.overhead == pytest.approx(0.0169) and row.seconds == 171.4
    assert row.is_baseline and row.compared is None
    assert row.commands == ["python train.py -m credit=atrl seed=0,3"]


def test_a_row_has_what_is_right_without_the_picture_by_hand(jobs):
    """After training 0.1 and 0.3: mean 0.2, half 12.706·0.1 = 1.2706; half of that with others' pictures."""
    seeds = [{"seed": seed, "blank": (0.9, after)} for seed, after in ((0, 0.1), (1, 0.3))]
    measured, without = make_table(jobs(*seeds, {"credit": "uniform"})).rows
    assert (measured.blank.mean, measured.swapped.mean) == pytest.approx((0.2, 0.1))
    assert measured.blank.half == pytest.approx(1.2706, abs=1e-4)
    assert without.blank is None and without.swapped is None


def test_differences_are_taken_seed_by_seed(jobs):
    """Pairs 0.6-0.5 and 0.8-0.5, the third seed alone: mean 0.2, half 12.706·0.1 = 1.2706."""
    base = [{"credit": "uniform", "seed": seed, "accuracy": 0.5} for seed in (0, 1)]
    other = [{"credit": "atrl", "seed": seed, "accuracy": a} for seed, a in ((1, 0.8), (0, 0.6), (2, 0.9))]
    first, second = make_table(jobs(*base, *other)).rows
    assert first.missing == [2] and first.is_baseline and not second.is_baseline
    found = second.compared
    assert found.difference.mean == pytest.approx(0.2) and found.difference.half == pytest.approx(1.2706, abs=1e-4)
    assert found.sign_p == 0.5 and second.adjusted == pytest.approx(found.t_p)


def test_each_row_has_the_baseline_that_differs_by_the_named_setting_alone(jobs):
    settings = [
        {"credit": credit, "trainer__max_steps": steps, "seed": seed, "accuracy": base + gain + 0.01 * seed}
        for steps, base in ((3, 0.3), (9, 0.6))
        for credit, gain in (("atrl", 0.1), ("uniform", 0.0))
        for seed in (0, 1)
    ]  # fmt: skip
    table = make_table(jobs(*settings), order=["trainer.max_steps"], baseline={"credit": "uniform"})
    assert [(row.values, row.is_baseline) for row in table.rows] == [
        (("3", "atrl"), False), (("3", "uniform"), True), (("9", "atrl"), False), (("9", "uniform"), True),
    ]  # fmt: skip
    assert [row.compared and round(row.compared.difference.mean, 6) for row in table.rows] == [0.1, None, 0.1, None]


def test_what_belongs_to_another_component_is_no_obstacle_to_a_baseline(jobs):
    runs = jobs(
        *({"credit": "uniform", "seed": seed} for seed in (0, 1)),
        *({"credit__num_clusters": k, "seed": seed, "accuracy": 0.6} for k in (4, 8) for seed in (0, 1)),
    )
    rows = make_table(runs, baseline={"credit": "uniform"}).rows
    assert [row.compared and round(row.compared.difference.mean, 6) for row in rows] == [None, 0.1, 0.1]


def test_a_baseline_value_is_compared_as_it_is_written(jobs):
    runs = jobs({"credit__anchor_ratio": 1}, {"credit__anchor_ratio": 0.5})
    assert [row.is_baseline for row in make_table(runs, baseline={"credit.anchor_ratio": 1}).rows] == [True, False]


@pytest.mark.parametrize(
    ("baseline", "says"),
    [
        ({"sead": 1}, "the runs do not differ by it: they do by credit$"),
        ({"credit": "vppo"}, "no run has it: they have "),
    ],
)
def test_a_baseline_that_is_not_there_is_refused(jobs, baseline, says):
    runs = jobs({"credit": "uniform"}, {"credit": "atrl"})
    with pytest.raises(ValueError, match=says):
        make_table(runs, baseline=baseline)


def test_one_run_and_runs_without_seeds_or_accuracy_make_a_table(jobs):
    (row,) = make_table(jobs({"accuracy": None})).rows
    assert row.after is None and row.seeds == [0] and row.commands == ["python train.py credit=atrl seed=0"]
    assert make_table([]).rows == []


def test_commands_leave_out_what_the_sweep_added(jobs):
    added = ["credit=atrl", "seed=0", "+x='a b'", "logger.wandb.group='s'", "logger.wandb.tags=['x']", "resume=auto"]
    (row,) = make_table(jobs({"overrides": added})).rows
    assert row.commands == ["python train.py credit=atrl '+x='\"'\"'a b'\"'\"'' seed=0"]


def test_commands_have_the_flags_that_say_where_configs_lie_as_they_were_given(jobs, tmp_path):
    jobs({"seed": 0}, {"seed": 1}, {"seed": 2})
    for name, command in {
        "0": "python train.py -m --config-dir 'my configs' --config-name=own credit=atrl seed=0,1",
        "1": "python /x/train.py --config-dir 'my configs' --config-name=own --multirun credit=atrl seed=1",
        "2": "python train.py credit=atrl seed=2",
    }.items():
        (tmp_path / name / "command.txt").write_text(f"{command}\n")
    (row,) = make_table(find_runs([tmp_path / "0", tmp_path / "1"])).rows
    assert row.commands == ["python train.py -m --config-dir 'my configs' --config-name=own credit=atrl seed=0,1"]
    (row,) = make_table(find_runs([tmp_path])).rows
    assert row.commands == [
        "python train.py credit=atrl seed=2",
        "python train.py -m --config-dir 'my configs' --config-name=own credit=atrl seed=0,1",
    ]


# Reading.


def test_runs_come_in_the_order_of_their_numbers_and_once(tmp_path):
    for number in (10, 9, 2):
        write_job(tmp_path / str(number), number=number)
    (tmp_path / "other").mkdir()
    found = [run.folder.name for run in find_runs([tmp_path, tmp_path / "9"])]
    assert found == ["2", "9", "10"]
    assert holds_runs(tmp_path) and not holds_runs(tmp_path / "9") and not holds_runs(tmp_path / "other")


def test_a_folder_without_runs_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match="holds no runs"):
            find_runs([folder])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("config.yaml", "a: [1"), ("job.json", "{"), ("job.json", "[]"), ("summary.json", "{}")),
        (".hydra/config.yaml", "a: b: c"),
    ],
)
def test_malformed_files_are_named_in_one_line(tmp_path, name, content):
    write_job(tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as caught:
        read_run(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_config_is_read_and_never_resolved(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "leaked")
    write_job(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "data": {"path": "${oc.env:SECRET}"}}))
    assert read_run(tmp_path / "run").settings["data.path"] == "${oc.env:SECRET}"


# What is missing.


def test_runs_of_a_sweep_are_found_however_deep_their_names_put_them(tmp_path):
    """An override that names a folder may hold a slash, as a path does; elsewhere nothing is looked for below."""
    names = ["model.path=/data/b10,seed=0", "model.path=/data/b9,seed=0", "model/lora=none"]
    for number, name in enumerate(names):
        write_job(tmp_path / name, number=number)
        (tmp_path / name / "unfinished" / "1").mkdir(parents=True)
        (tmp_path / name / "unfinished" / "1" / "config.yaml").touch()
    assert not holds_runs(tmp_path)
    SweepRecord("python train.py -m …", ["model.path"], None).write(tmp_path)
    assert holds_runs(tmp_path)
    assert [str(run.folder.relative_to(tmp_path)) for run in find_runs([tmp_path])] == [
        "model.path=/data/b9,seed=0", "model.path=/data/b10,seed=0", "model/lora=none",
    ]  # fmt: skip


def test_a_sweep_whose_folders_lie_deeper_is_reported_at_its_end(tmp_path, monkeypatch, capsys):
    write_job(tmp_path / "model" / "lora=none")
    SweepRecord("python train.py -m …", ["model/lora"], None).write(tmp_path)
    monkeypatch.setattr(end, "_begun", [tmp_path])
    assert end.end_sweep() == []
    assert f"sweep report: {tmp_path / 'sweep.html'}" in capsys.readouterr().out


def test_a_finished_job_that_a_later_start_passes_over_is_not_missing(tmp_path):
    """Said again with a setting of where it computes, its overrides are others."""
    write_job(tmp_path / "0", seed=0)
    asked = ["credit=atrl", "seed=0", "trainer.checkpoint_every=1"]
    note_asked(tmp_path / "0", asked)
    (run,) = find_runs([tmp_path])
    assert run.overrides == ["credit=atrl", "seed=0"]
    assert pending([run], SweepRecord("x", [], [asked])) == []
    assert [job.name for job in pending([run], SweepRecord("x", [], [asked, [*asked, "trainer.max_steps=9"]]))] == ["1"]


def test_failed_stopped_and_jobs_that_were_not_begun_are_told_of(tmp_path):
    write_job(tmp_path / "0", seed=0)
    write_job(tmp_path / "1", seed=1, status="failed", error="no memory")
    write_job(tmp_path / "2", seed=2, status="running")
    record = SweepRecord("", ["seed"], [["credit=atrl", f"seed={seed}"] for seed in range(4)], None)
    found = pending(find_runs([tmp_path]), record)
    assert [(job.name, job.status, job.error) for job in found] == [
        ("1", "failed", "no memory"), ("2", "unfinished", ""), ("3", "not begun", ""),
    ]  # fmt: skip
    assert found[2].command == "python train.py credit=atrl seed=3"
    assert len(pending(find_runs([tmp_path]), None)) == 2


def test_commands_of_what_is_missing_have_the_flags_of_their_job_or_their_sweep(tmp_path):
    job = write_job(tmp_path / "0", status="failed") / "job.json"
    job.write_text(
        json.dumps(json.loads(job.read_text()) | {"command": "python train.py --config-dir=/abs credit=atrl"})
    )
    record = SweepRecord("python train.py -m -cd mine credit=atrl seed=0,1", [], [["credit=atrl", "seed=1"]], None)
    assert [left.command for left in pending(find_runs([tmp_path]), record)] == [
        "python train.py --config-dir=/abs credit=atrl seed=0",
        "python train.py -cd mine credit=atrl seed=1",
    ]


def test_the_command_of_a_run_that_broke_off_outside_a_sweep_has_its_flags(tmp_path):
    """Such a run leaves no `job.json`, and its command in `command.txt`."""
    folder = write_job(tmp_path / "0", status="failed")
    (folder / "job.json").unlink()
    (folder / "command.txt").write_text("python train.py --config-dir mine credit=atrl seed=0\n")
    (left,) = pending(find_runs([folder]), None)
    assert (left.status, left.command) == ("unfinished", "python train.py --config-dir mine credit=atrl seed=0")
    (folder / ".hydra" / "overrides.yaml").write_text("[]")
    assert pending(find_runs([folder]), None) == [left]


# Heat map and curves.


def test_two_settings_make_a_heat_map(tmp_path):
    table = make_table(find_runs([write_sweep(tmp_path)]), order=["credit.anchor_ratio", "credit.num_clusters"])
    grid = make_grid(table)
    assert (grid.down, grid.across, grid.columns) == ("credit.anchor_ratio", "credit.num_clusters", ["2", "8", "16"])
    assert [name for name, _ in grid.rows] == ["0.05", "0.15", "0.3"]
    cells = [cell for _, line in grid.rows for cell in line]
    assert cells[-1].row is None and sum(cell.row is None for cell in cells) == 1
    known = [cell for cell in cells if cell.row is not None]
    best, worst = (choose(known, key=lambda cell: cell.row.after.mean) for choose in (max, min))
    assert (best.tint, worst.tint) == (0.8, 0.0) and best.row.values == ("0.15", "8")


def test_other_numbers_of_settings_make_none(jobs):
    assert make_grid(make_table(jobs({"credit__num_clusters": 2}, {"credit__num_clusters": 4}))) is None


def test_values_are_put_in_order():
    assert in_order({"16", "2", None, "auto", "8"}) == [None, "2", "8", "16", "auto"]


def test_a_band_is_the_mean_over_seeds_where_all_have_a_point():
    """At step 1: 0.2 and 0.4, mean 0.3, half 12.706·0.1 = 1.2706; step 0 has one seed alone."""
    found = band([Curve([0, 1, 2], [0.1, 0.2, 0.5]), Curve([1, 2], [0.4, 0.5])], window=1)
    assert found.steps == [1, 2] and found.mean == pytest.approx([0.3, 0.5])
    low, high = found.limits(share=False)
    assert low == pytest.approx([0.3 - 1.2706, 0.5], abs=1e-4) and high == pytest.approx([0.3 + 1.2706, 0.5], abs=1e-4)
    assert [list(ends) for ends in found.limits(share=True)] == [[0.0, 0.5], [1.0, 0.5]]
    alone = band([Curve([3], [0.5])], window=1)
    assert alone == Band([3], [Estimate(0.5, None, 1)]) and alone.limits(share=True) is None
    assert band([Curve([0], [0.1]), Curve([1], [0.1])], window=1) is None and band([], window=1) is None


def test_bands_of_shares_are_drawn_within_0_and_1_and_others_as_they_are(jobs, monkeypatch):
    """Rollouts right 0.6 and 0.8 reach to 0.7 ± 1.2706; entropies 0.3 of both have a band without width."""
    drawn = []
    monkeypatch.setattr(Axes, "fill_between", lambda axes, steps, low, high, **_: drawn.append((low, high)))
    draw_curves(make_table(jobs({"seed": 0, "curve": [0.6]}, {"seed": 1, "curve": [0.8]})))
    assert drawn == [([0.0], [1.0]), ([0.3], [0.3]), ([50.0], [50.0])]


def test_seeds_are_smoothed_before_they_are_put_together():
    """Moving means over 3: (0+3)/2, (0+3+0)/3, (3+0)/2."""
    assert band([Curve([0, 1, 2], [0.0, 3.0, 0.0])], window=3).mean == pytest.approx([1.5, 1.0, 1.5])


def test_of_many_rows_the_baseline_and_the_best_are_drawn(jobs):
    runs = jobs(*({"credit__num_clusters": 2 + n, "accuracy": 0.01 * n} for n in range(12)))
    assert [row.number for row in chosen_rows(make_table(runs))] == [1, 6, 7, 8, 9, 10, 11, 12]


def test_job_records_are_json_objects(tmp_path: Path):
    write_job(tmp_path / "0", status="failed", error="x")
    assert json.loads((tmp_path / "0" / "job.json").read_text())["error"] == read_run(tmp_path / "0").error

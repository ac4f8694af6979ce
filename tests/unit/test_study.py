"""The study's bookkeeping: what is run, with which rate, what is kept of a run, and what the table says."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from atrl.metrics_file import MetricsFile
from atrl.own_code import sources_now, write_sources
from tests.report_run import grounding, summary
from tests.unit.refusals import refusal
from tests.unit.waiting import is_gone, wait_for

SCRIPT = Path(__file__).parents[2] / "experiments" / "study.py"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The script as a module, with a folder of its own for results."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "study", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "study")
    monkeypatch.setattr(module, "CHECKPOINTS", tmp_path / "outputs")
    return module


class Processes:
    """In place of the processes that train: each leaves what such a run does, and is done at once."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.options: list[dict] = []

    def run(self, command: list[str], **options) -> SimpleNamespace:
        self.commands.append(command)
        self.options.append(options)
        given = dict(word.split("=", 1) for word in command[2:])
        folder = Path(given["hydra.run.dir"])
        if "_checkpoint/" in given["hydra.run.dir"]:
            (folder / "model").mkdir(parents=True, exist_ok=True)
            (folder / "model" / "model.safetensors").write_text(given["hydra.run.dir"])
        else:
            leave_run(folder, accuracy_of(int(given.get("seed", 0)), float(given.get("optimizer.learning_rate", 1e-5))))
        return SimpleNamespace(returncode=0, stderr="")


def accuracy_of(seed: int, rate: float) -> float:
    """No two runs that a scheme has end alike, and the largest rate is the best."""
    return seed / 1000 + 100 * rate


def leave_run(folder: Path, accuracy: float, *, anchors: bool = True) -> None:
    """Summary and metrics of two steps with one evaluation between them, each in a row of its own."""
    logger = MetricsFile(str(folder), name="", version="")
    for step, right, recall in ((1, 0.25, 0.5), (2, 0.5, 0.75)):
        credit = {"anchor_recall": recall, "anchor_precision": 0.3, "anchor_auc": 0.9, "bimodality": 0.6}
        row = {"reward/right": right, "reward/exact": 0.8, "reward/mean": 0.9, "reward/wrong": 1 - right}
        logger.log_metrics(row | ({f"credit/{name}": value for name, value in credit.items()} if anchors else {}), step)
        if step == 1:
            logger.log_metrics({"eval/accuracy": 0.7, "eval/greedy": 0.75}, step)
    logger.save()
    measured = {"before": 0.25, "after": accuracy, "samples": 512}
    (folder / "summary.json").write_text(json.dumps(summary(steps=2, accuracy=measured)))


@pytest.fixture
def processes(study, monkeypatch) -> Processes:
    instead = Processes()
    monkeypatch.setattr(study, "subprocess", instead)
    return instead


def say(study, monkeypatch, *words: str) -> None:
    """The script's command."""
    monkeypatch.setattr(sys, "argv", ["study.py", *words])
    study.main()


def test_what_is_kept_of_a_run(study, tmp_path):
    """The curve is the share of right rollouts at each step; 0.5 and 0.75 of the anchors make a recall of 0.625."""
    leave_run(tmp_path / "run", 0.5)
    kept = study.read_run(tmp_path / "run")
    assert kept["curve"] == [0.25, 0.5]
    assert kept["anchors"] == pytest.approx(
        {"anchor_recall": 0.625, "anchor_precision": 0.3, "anchor_auc": 0.9, "bimodality": 0.6}
    )
    assert kept["accuracy"] == {"before": 0.25, "after": 0.5, "samples": 512}
    assert kept["steps"] == 2 and kept["seconds"] == 171.4  # of the summary, its total
    assert kept["git_revision"].startswith("3f1c9a7") and kept["versions"]["atrl"] == "0.1.0"


def test_what_a_run_measured_without_its_pictures_is_kept(study, tmp_path):
    """After training; a run that measured nothing of the kind keeps nothing."""
    leave_run(tmp_path / "run", 0.5)
    assert "grounding" not in study.read_run(tmp_path / "run")
    (tmp_path / "run" / "grounding.json").write_text(json.dumps(grounding()))
    assert study.read_run(tmp_path / "run")["grounding"] == {"true": 0.859, "blank": 0.125, "swapped": 0.086}


def test_a_run_without_credit_has_no_anchors(study, tmp_path):
    leave_run(tmp_path / "run", 0.5, anchors=False)
    assert study.read_run(tmp_path / "run")["anchors"] == {}
    write_sources(tmp_path / "run", {"mine": "ab12"})
    assert study.read_run(tmp_path / "run")["sources"] == {"mine": "ab12"}


def test_a_cell_is_trained_as_its_file_says(study, processes, monkeypatch, tmp_path):
    """Of its seed and rate the process has to know, or its accuracy is another: 7/1000 + 100 · 8e-4."""
    monkeypatch.setattr(study, "ROOT", tmp_path)
    cell = study.Cell("wordy", "main", "oracle", 7, 8e-4, ("credit=oracle",))
    assert study.run_cell(cell) == "oracle 0.0008 seed 7: 0.087"
    kept = json.loads(cell.file.read_text())
    assert kept["accuracy"]["after"] == pytest.approx(0.087) and kept["curve"] == [0.25, 0.5]
    named = [kept[key] for key in ("task", "phase", "scheme", "seed", "learning_rate")]
    assert named == ["wordy", "main", "oracle", 7, 8e-4]
    assert set(kept["overrides"]) == {
        *(*study.TASKS["wordy"].overrides, "model.path=outputs/wordy_checkpoint/build", *study.COMMON),
        *("credit=oracle", "seed=7", "optimizer.learning_rate=0.0008"),
    }
    [command], [options] = processes.commands, processes.options
    assert [word for word in command[2:] if "hydra.run.dir" not in word] == cell.settings
    assert f"model.path={tmp_path / 'outputs' / 'wordy_checkpoint' / 'build'}" in command
    assert options["env"]["OMP_NUM_THREADS"] == "1"


def test_a_cell_that_fails_leaves_no_file(study, monkeypatch):
    failed = SimpleNamespace(returncode=2, stderr="data.path is not set")
    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=lambda command, **options: failed))
    cell = study.Cell("geometry", "main", "atrl", 0, 4e-4, ())
    with pytest.raises(RuntimeError, match=r"data\.path is not set"):
        study.run_cell(cell)
    assert not cell.file.parent.exists()


def test_no_run_is_left_behind_by_a_study_that_was_ended(study, tmp_path):
    """SIGTERM ends the study at once; what it had started would go on for minutes, for nobody."""
    started = tmp_path / "pid"
    (tmp_path / "train.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(started)!r}).write_text(f'{{os.getpid()}} ')\ntime.sleep(600)\n"
    )
    code = (
        "import pathlib, sys, study\n"
        f"study.ROOT = study.RESULTS = pathlib.Path({str(tmp_path)!r})\n"
        "sys.argv = ['study.py', 'run', '--task', 'geometry', '--cells', '1']\n"
        "study.main()\n"
    )
    path = os.pathsep.join([str(SCRIPT.parent), *sys.path])
    running = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    wait_for(lambda: started.is_file() and started.read_text().endswith(" "), seconds=120)
    running.terminate()
    assert running.wait(timeout=60) == -signal.SIGTERM
    wait_for(lambda: is_gone(int(started.read_text())))


def test_an_interrupted_study_says_that_it_can_be_gone_on_with(study, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run_missing", interrupted)
    with pytest.raises(SystemExit, match="said again, it goes on"):
        say(study, monkeypatch, "run")


def test_one_command_runs_the_whole_study(study, processes, monkeypatch, capsys):
    """By hand: of geometry 60 + 70 + 10 + 60 cells, of wordy 45 + 6 + 3, of geometry_again 60 + 10, of wordy_again
    24 + 115, of wordy_fresh 24, of wordy_third 16 and of easy_vqa 54 + 65 + 10, and before four of them their
    checkpoints.

    The largest rate is the best of every scheme, so that no uniform credit at another rate is wanted.
    """
    say(study, monkeypatch, "run", "--jobs", "1")
    expected = [
        *("geometry",) * 200,
        *("wordy's checkpoint", *("wordy",) * 54),
        *("geometry_again",) * 70,
        *("wordy_again's checkpoint", *("wordy_again",) * (139 + 24)),  # the last of them wordy_fresh's
        *("wordy_third's checkpoint", *("wordy_third",) * 16),
        *("easy_vqa's checkpoint", *("easy_vqa",) * 129),
    ]
    assert [asked_by(command) for command in processes.commands] == expected
    assert len(list(study.RESULTS.rglob("*.json"))) == 200 + 54 + 70 + 139 + 24 + 16 + 129
    assert {cell.rate for cell in study.main_cells("geometry")} == {8e-4}
    capsys.readouterr()
    say(study, monkeypatch, "table")
    shown = capsys.readouterr().out
    assert shown.index("## geometry") < shown.index("| papo |") < shown.index("## wordy\n")
    say(study, monkeypatch, "table", "--task", "wordy")
    wordy = shown.split("## wordy\n")[1].split("## geometry_again")[0].strip()
    assert capsys.readouterr().out.strip() == wordy
    elsewhere = study.RESULTS.rename(study.RESULTS.with_name("first_round"))
    say(study, monkeypatch, "table", "--task", "wordy", "--folder", str(elsewhere))
    assert capsys.readouterr().out.strip() == wordy


def asked_by(command: list[str]) -> str:
    """Which task asks for a run, or for a checkpoint."""
    if "experiment=wordy_checkpoint" in command:
        (folder,) = (word for word in command if word.startswith("hydra.run.dir="))
        return f"{Path(folder).parent.name.removesuffix('_checkpoint')}'s checkpoint"
    if {"experiment=easy_vqa", "stage=sft"} < set(command):
        return "easy_vqa's checkpoint"
    if "experiment=wordy" in command:
        (start,) = (word for word in command if word.startswith("model.path="))
        return Path(start).parent.name.removesuffix("_checkpoint")
    if "data=easy_vqa" in command:
        return "easy_vqa"
    again = {f"seed={seed}" for seed in range(10, 20)}  # elsewhere seeds are below 10 or above 99
    return "geometry_again" if again & set(command) else "geometry"


def test_a_study_that_was_stopped_goes_on(study, processes, monkeypatch, capsys):
    """Three of the 54 rates on easy-VQA, then the others, then none; the checkpoint is made once."""
    only = ("run", "--task", "easy_vqa", "--only", "rates")
    say(study, monkeypatch, *only, "--cells", "3")
    assert len(processes.commands) == 1 + 3
    say(study, monkeypatch, *only)
    assert len(processes.commands) == 1 + 54
    trained = [tuple(word for word in command if "hydra.run.dir" not in word) for command in processes.commands]
    assert len(set(trained)) == 55
    say(study, monkeypatch, *only)
    assert len(processes.commands) == 55 and "nothing is missing" in capsys.readouterr().out


def test_runs_from_two_checkpoints_are_not_mixed(study, processes, monkeypatch, capsys):
    """Runs that are kept go with the checkpoint that they began with, as a checksum of its weights says."""
    asked = ("run", "--task", "wordy_again", "--cells")
    say(study, monkeypatch, *asked, "2")
    weights = study.checkpoint("wordy_again") / "model" / "model.safetensors"
    kept = [json.loads(file.read_text()) for file in study.RESULTS.rglob("*.json")]
    assert [run["checkpoint_sha256"] for run in kept] == [hashlib.sha256(weights.read_bytes()).hexdigest()] * 2
    say(study, monkeypatch, *asked, "2")
    assert len(processes.commands) == 1 + 4
    for change in (lambda: weights.write_text("others"), weights.unlink):
        change()
        with pytest.raises(SystemExit):
            say(study, monkeypatch, *asked, "1")
        complaint = capsys.readouterr().err
        assert f"the runs in {study.RESULTS / 'wordy_again'} began with another checkpoint than" in complaint
        assert "move that folder away" in complaint and len(processes.commands) == 1 + 4
    shutil.rmtree(study.RESULTS / "wordy_again")
    say(study, monkeypatch, *asked, "1")
    assert len(processes.commands) == 1 + 4 + 2


def test_what_cannot_be_gone_on_with_is_said_before_other_tasks_run(study, processes, monkeypatch, capsys):
    """The first task has cells to run, the second has one from a checkpoint that is not there."""
    write(study.Cell("wordy", "main", "uniform", 0, 4e-4, ("credit=uniform",)), 0.5)
    with pytest.raises(SystemExit):
        say(study, monkeypatch, "run", "--only", "main")
    assert "another checkpoint" in capsys.readouterr().err and not processes.commands


def test_cells_are_counted_over_tasks(study, processes, monkeypatch):
    """Of geometry 60 rates and of wordy_again 2; no checkpoint is made for none."""
    say(study, monkeypatch, "run", "--only", "rates", "--cells", "60")
    assert len(processes.commands) == 60 and not study.CHECKPOINTS.exists()
    say(study, monkeypatch, "run", "--only", "rates", "--cells", "2")
    asked = [asked_by(command) for command in processes.commands[60:]]
    assert asked == ["wordy_again's checkpoint", "wordy_again", "wordy_again"]


def write(cell, accuracy: float, greedy: dict | None = None, **more) -> None:
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    result = {"scheme": cell.scheme, "seed": cell.seed, "learning_rate": cell.rate}
    result |= {"accuracy": {"after": accuracy, "greedy": greedy}}
    cell.file.write_text(json.dumps(result | {"curve": [accuracy / 2, accuracy], "anchors": {}} | more))


def test_every_cell_has_a_file_of_its_own(study):
    cells = study.rate_cells("geometry")
    assert len(cells) == 2 * 3 * 10 == len({cell.file for cell in cells})
    assert not {cell.file for cell in cells} & {cell.file for cell in study.rate_cells("easy_vqa")}
    assert all("trainer.evaluate_split=selection" in cell.overrides for cell in cells)


def test_the_rate_with_the_best_mean_over_seeds_is_chosen(study):
    """Means 0.5, 0.55 and 0.45; on one seed alone the last would be the best."""
    accuracies = {(2e-4, 100): 0.5, (2e-4, 101): 0.5, (4e-4, 100): 0.4, (4e-4, 101): 0.7}
    accuracies |= {(8e-4, 100): 0.6, (8e-4, 101): 0.3}
    cells = [cell for cell in study.rate_cells("geometry") if cell.scheme == "atrl"]
    for cell in cells[:-1]:
        write(cell, accuracies[cell.rate, cell.seed])
    assert study.chosen_rate("geometry", "atrl") is None and study.main_cells("geometry") == []
    write(cells[-1], accuracies[cells[-1].rate, cells[-1].seed])
    assert study.chosen_rate("geometry", "atrl") == 4e-4
    main = study.main_cells("geometry")
    assert [(cell.scheme, cell.seed, cell.rate) for cell in main] == [("atrl", seed, 4e-4) for seed in range(10)]


def test_a_task_may_run_a_part(study):
    """Three rates of nine schemes on two seeds; of those that have their rate five seeds, or ten."""
    cells = study.rate_cells("easy_vqa")
    assert len(cells) == 9 * 3 * 2 and {cell.seed for cell in cells} == {100, 101}
    for cell in cells:
        if cell.scheme in ("uniform", "anchor_only"):
            write(cell, 0.5)
    main = study.main_cells("easy_vqa")
    both = [(scheme, seed) for seed in range(5) for scheme in ("uniform", "anchor_only")]
    assert [(cell.scheme, cell.seed) for cell in main] == [*both, *(("uniform", seed) for seed in range(5, 10))]
    assert study.variant_cells("geometry") == []  # atrl's rate is not chosen


def test_a_single_rate_is_everybodys(study):
    """Nothing is to be chosen, and no uniform credit at another rate is to be compared with."""
    assert study.rate_cells("wordy") == []
    cells = [*study.main_cells("wordy"), *study.control_cells("wordy"), *study.variant_cells("wordy")]
    assert len(cells) == 3 * 10 + 6 + 3 * 3 + 6 + 3 and {cell.rate for cell in cells} == {4e-4}
    assert not any("evaluate_split" in override for cell in cells for override in cell.settings)


def test_some_schemes_may_have_a_choice_of_rates_where_others_have_one(study):
    """Six on two seeds; until one of them is chosen its seeds wait, those of the others do not."""
    cells = study.rate_cells("wordy_again")
    assert len(cells) == 6 * 2 * 2 and {cell.scheme for cell in cells}.isdisjoint({"uniform", "token_level", "oracle"})
    assert study.chosen_rate("wordy_again", "uniform") == 4e-4 and len(study.main_cells("wordy_again")) == 85
    for cell in cells:
        if cell.scheme == "oracle_only":
            write(cell, 0.5 - cell.rate)
    own = [cell for cell in study.main_cells("wordy_again") if cell.scheme == "oracle_only"]
    assert [(cell.seed, cell.rate) for cell in own] == [(seed, 2e-4) for seed in range(5)]
    assert study.control_cells("wordy_again") == []


def test_uniform_is_also_run_at_the_rate_of_what_might_win(study):
    """Both at the same rate: nothing to control. At two: ten seeds of uniform at the other, and both differences."""
    for cell in study.rate_cells("easy_vqa"):
        if cell.scheme in ("uniform", "oracle"):
            write(cell, 0.5 + (cell.rate == 2e-4) / 10)
    assert {cell.scheme for cell in study.control_cells("easy_vqa")} == {"shuffled", "supervised"}
    for cell in study.rate_cells("easy_vqa"):
        if cell.scheme == "oracle":
            write(cell, 0.5 + (cell.rate == 4e-4) / 10)
    extra = [cell for cell in study.control_cells("easy_vqa") if cell.scheme == "uniform_at_0.0004"]
    assert [(cell.seed, cell.rate, cell.overrides) for cell in extra] == [
        (seed, 4e-4, ("credit=uniform",)) for seed in range(10)
    ]
    for cell in [*study.main_cells("easy_vqa"), *extra]:
        if cell.seed < 2:
            write(cell, {"uniform": 0.5, "uniform_at_0.0004": 0.6}.get(cell.scheme, 0.7) + cell.seed / 10)
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:6] for row in study.table("easy_vqa").splitlines()[2:]}
    assert rows["oracle"][0] == "0.0004"
    assert [cell.split(" ±")[0] for cell in rows["oracle"][3:5]] == ["+0.200", "+0.100"]
    assert [cell.split(" ±")[0] for cell in rows["uniform_at_0.0004"][3:5]] == ["+0.100", ""]


def test_a_scheme_of_ones_own_is_run_by_the_same_plan(study, processes, monkeypatch, capsys):
    """Its six rates, then five seeds of it at the best, and ten of uniform there, whose own rate is the first; once."""
    for cell in study.rate_cells("geometry"):
        write(cell, 0.5 - cell.rate)
    for cell in [*study.main_cells("geometry"), *study.control_cells("geometry"), *study.variant_cells("geometry")]:
        write(cell, 0.5)
    asked = ("run", "--task", "geometry", "--add", "mine=credit=token_level 'credit.layers=[0, 1]'")
    say(study, monkeypatch, *asked)
    own = [command for command in processes.commands if "credit.layers=[0, 1]" in command]
    assert all("credit=token_level" in command for command in own)
    assert [("trainer.evaluate_split=selection" in command) for command in own] == [True] * 6 + [False] * 5
    assert {
        cell.file.name
        for cell in study.main_cells("geometry", {"mine": ("credit=token_level", "credit.layers=[0, 1]")})
    } >= {f"mine_0.0008_{seed}.json" for seed in range(5)}  # `processes` says that the largest rate is the best
    others = [command for command in processes.commands if command not in own]
    assert len(others) == 10 and all("credit=uniform" in command for command in others)
    rows = [line.split(" | ")[0].strip("| ") for line in study.table("geometry").splitlines()[2:]]
    assert rows[:2] == ["uniform", "uniform_at_0.0008"] and rows[-1] == "mine"
    say(study, monkeypatch, *asked)
    assert len(processes.commands) == 21 and "nothing is missing" in capsys.readouterr().out
    for other in ("credit=token_level credit.layers=[1]", "credit=token_level"):
        with pytest.raises(SystemExit):
            say(study, monkeypatch, *asked[:-1], f"mine={other}")
        assert "mine_0.0002_100.json is of mine with other overrides: choose another name" in capsys.readouterr().err


def test_a_scheme_whose_file_has_changed_is_another(study, processes, monkeypatch, capsys, tmp_path):
    """Runs of before and after would stand in one row of the table."""
    (tmp_path / "surprise_scheme.py").write_text("power = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    cell = study.rate_cells("geometry", {"mine": ("credit=mine",)})[-1]
    write(cell, 0.5, sources=sources_now(["surprise_scheme"]))
    assert study.has_run(cell)
    (tmp_path / "surprise_scheme.py").write_text("power = 2\n")
    with pytest.raises(SystemExit):
        say(study, monkeypatch, "run", "--task", "geometry", "--add", "mine=credit=mine")
    assert f"{cell.file.name} is of mine with another surprise_scheme: choose" in capsys.readouterr().err
    assert processes.commands == []


def test_a_cell_of_another_plan_is_not_taken_for_this_ones(study, processes, monkeypatch, capsys):
    """A task whose steps were changed is another; what is only measured is not, nor what files of before don't say."""
    cell = study.rate_cells("geometry")[0]
    study.run_cell(cell)
    kept = json.loads(cell.file.read_text())
    for change in (
        lambda words: words,
        lambda words: [word.replace("grounding_samples=512", "grounding_samples=0") for word in words],
        lambda words: [word for word in words if not word.startswith(("seed=", "optimizer.learning_rate="))],
    ):
        cell.file.write_text(json.dumps(kept | {"overrides": change(kept["overrides"])}))
        assert study.has_run(cell)
    for change in (
        lambda words: [word.replace("trainer.max_steps=60", "trainer.max_steps=30") for word in words],
        lambda words: [word for word in words if word != "trainer.max_steps=60"],
        lambda words: [*words, "trainer.max_steps=61"],
    ):
        cell.file.write_text(json.dumps(kept | {"overrides": change(kept["overrides"])}))
        with pytest.raises(SystemExit):
            say(study, monkeypatch, "run", "--task", "geometry")
        complaint = capsys.readouterr().err
        assert f"{cell.file.name} is of uniform with another trainer.max_steps: choose another name" in complaint
    assert len(processes.commands) == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mine", "must be NAME='OVERRIDES', as mine='credit=mine credit.power=2', got 'mine'"),
        ("mine= ", "must be NAME='OVERRIDES'"),
        ("../mine=credit=atrl", "must be NAME='OVERRIDES'"),
        ("atrl=credit=atrl", "atrl is a name of the study's own: choose another"),
        ("shuffled=credit=atrl", "shuffled is a name of the study's own"),
        ("uniform_at_1=credit=uniform", "uniform_at_1 is a name of the study's own"),
    ],
)
def test_what_is_no_scheme_of_ones_own_is_refused(study, monkeypatch, capsys, text, complaint):
    with pytest.raises(SystemExit):
        say(study, monkeypatch, "run", "--add", text)
    assert complaint in capsys.readouterr().err


def test_intervals_by_hand(study):
    """Of 1, 2, 3: mean 2, standard deviation 1, t(2) = 4.303 over the root of 3."""
    assert study.study_table.shown([1.0, 2.0, 3.0]) == "2.000 ± 2.484"


def test_the_table_pairs_runs_by_seed(study):
    """Differences from uniform 0.1 and 0.2: mean 0.15, half width 12.706 · 0.0707/√2."""
    for scheme, accuracies in {"uniform": (0.5, 0.6, 0.7), "atrl": (0.6, 0.8)}.items():
        for seed, accuracy in enumerate(accuracies):
            write(study.Cell("geometry", "main", scheme, seed, 1e-4, ()), accuracy)
    rows = [line.split("|")[1:-1] for line in study.table("geometry").splitlines()[2:]]
    assert [[cell.strip() for cell in row[:3]] for row in rows] == [["uniform", "0.0001", "3"], ["atrl", "0.0001", "2"]]
    assert rows[0][3].strip() == "0.600 ± 0.248" and rows[0][4].strip() == ""
    assert rows[1][4].strip() == "+0.150 ± 0.635"
    assert rows[0][5].strip() == "" and rows[1][5].strip() == "+0.150 ± 0.635"
    assert rows[0][6].strip() == "0.450 ± 0.186"


def test_the_table_shows_accuracies_that_were_measured_sometimes(study):
    """Greedy ones and those without the picture, by hand: means of 0.6 and 0.8, of 0.2 and 0.3, and of 0.1 and 0.3;
    supervised runs measure none. The other task has no columns."""
    for seed, (greedy, blank, swapped) in enumerate([(0.6, 0.2, 0.1), (0.8, 0.3, 0.3)]):
        sides = {"true": 0.9, "blank": blank, "swapped": swapped}
        write(study.Cell("easy_vqa", "main", "uniform", seed, 2e-4, ()), 0.5, {"after": greedy}, grounding=sides)
        write(study.Cell("geometry", "main", "uniform", seed, 2e-4, ()), 0.5)
    write(study.Cell("easy_vqa", "controls", "supervised", 0, 2e-4, ()), 0.5, overrides=["stage=sft"])
    lines = study.table("easy_vqa").splitlines()
    head, _, row, supervised = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert supervised[-3:] == ["", "", ""] and len(supervised) == len(head)
    assert supervised[1] == supervised[5] == "" and supervised[4] == "+0.000"  # it has a rate of another kind
    assert head[-3:] == ["greedy", "pictures blanked", "another's picture"]
    assert [cell.split(" ±")[0] for cell in row[-3:]] == ["0.700", "0.250", "0.200"] and len(row) == len(head)
    assert not any(name in study.table("geometry") for name in ("greedy", "picture"))


def test_the_table_mixes_no_rates(study, monkeypatch, capsys):
    """As where another rate was chosen later: of a seed that has both, one would hide the other."""
    for rate, seed in ((2e-4, 0), (4e-4, 0), (4e-4, 1)):
        write(study.Cell("geometry", "main", "atrl", seed, rate, ()), 0.5)
    with pytest.raises(SystemExit):
        say(study, monkeypatch, "table", "--task", "geometry")
    complaint = capsys.readouterr().err
    assert f"{study.RESULTS / 'geometry' / 'main'} has runs of atrl at rates 0.0002 and 0.0004: move" in complaint


def test_a_table_of_nothing_is_refused(study, monkeypatch, capsys, tmp_path):
    """Of a folder that is misspelt, say; of several tasks those are left out that have no run."""
    write(study.Cell("wordy", "main", "uniform", 0, 4e-4, ()), 0.5)
    say(study, monkeypatch, "table")
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")] == ["## wordy"]
    for words, folder in ((("--folder", str(tmp_path / "none")), "none"), (("--task", "geometry"), "study")):
        with pytest.raises(SystemExit):
            say(study, monkeypatch, "table", *words)
        assert f"{tmp_path / folder} has no runs of geometry" in capsys.readouterr().err


def test_every_override_composes(study):
    """So that no cell fails after hours: schemes, tasks and controls are configs that exist."""
    from hydra import compose, initialize_config_dir

    from atrl.config import check_config

    tasks = [part for task in study.TASKS.values() for part in (task.overrides, task.checkpoint)]
    overrides = [*tasks, *study.SCHEMES.values(), *study.VARIANTS.values(), *study.CONTROLS.values()]
    for chosen in overrides:
        with initialize_config_dir(str(SCRIPT.parents[1] / "conf"), version_base="1.3"):
            config = compose("train", overrides=[*study.COMMON, *chosen])
        config.logger = None  # its folder is known to a run of Hydra's alone
        assert refusal(check_config, config) is None, chosen

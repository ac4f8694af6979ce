"""The study of credit schemes: many runs, one small JSON each, and a table a task.

    python experiments/study.py run [--task TASK] [--jobs 2] [--cells N] [--only rates|main|controls|variants]
                                    [--add NAME='OVERRIDES']
    python experiments/study.py table [--task TASK] [--folder experiments/first_round]

`run` does all of it, task by task, and goes on where it was stopped: a cell whose file is in `experiments/study/` is
not run again. All cells have theirs there, so move that folder away to repeat the study. First each scheme's learning
rate is chosen on the selection split (`rates`, two seeds of three values). Then every scheme trains with its own rate
and is scored on the test split (`main`, five seeds; ten of what might win), and so do the `controls` and the `variants`
of atrl (at atrl's rate). `table` needs no more than the files. The task `wordy` has long answers, most tokens of which
the reward does not depend on; its checkpoint is trained before its first cell, if it is not there. Its runs take
several times as long, so it has fewer: seven schemes at one rate, three to ten seeds. `easy_vqa` has published
pictures, a checkpoint of its own too, and nine schemes. `geometry_again` and `wordy_again` test what the others
suggest, on fresh seeds and from another checkpoint with 16 schemes, where those that train a part of the tokens have a
choice of two rates; `wordy_fresh` is three of them on fresh seeds from that checkpoint, and `wordy_third` asks of a
third one which of the anchors that don't read do harm. A checkpoint that is trained again, on another processor say, is
another one: a task whose kept runs began with another is not gone on with.

`--add` runs a scheme of your own by the same plan, as `--add mine='credit=mine credit.power=2' --task geometry`: its
rates, its seeds, and uniform credit at its rate where that is another. The table shows it beside the others. A run is
started in a folder of its own, so that a path among the overrides must be a whole one.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import study_table
from study_result import read_run
from study_tasks import COMMON, CONTROLS, SCHEMES, TASKS, VARIANTS

from atrl.own_code import changed_since, sources_now
from atrl.sweep.child import end_with_parent

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "study"
CHECKPOINTS = ROOT / "outputs"
NOT_COMPARED = {"seed", "optimizer.learning_rate", "trainer.grounding_samples"}
"""Of a kept cell's settings: its file's name says the first two, and the third changes only what is measured."""
Schemes = Mapping[str, tuple[str, ...]]
"""By name, the overrides that choose a scheme."""
NONE: Schemes = {}
IN_ORDER = (*SCHEMES, *CONTROLS, *VARIANTS)


@dataclass(frozen=True)
class Cell:
    """One run."""

    task: str
    phase: str
    scheme: str
    seed: int
    rate: float
    overrides: tuple[str, ...]

    @property
    def file(self) -> Path:
        """Where its result is kept."""
        return RESULTS / self.task / self.phase / f"{self.scheme}_{self.rate:g}_{self.seed}.json"

    @property
    def settings(self) -> list[str]:
        """Every override of its run but the run's folder."""
        task, own = TASKS[self.task], [f"seed={self.seed}", f"optimizer.learning_rate={self.rate}"]
        start = [f"model.path={checkpoint(self.task)}"] if task.checkpoint else []
        return [*task.overrides, *start, *COMMON, *self.overrides, *own]


def planned_schemes(task: str, added: Schemes) -> Schemes:
    """The task's schemes, and those that are `added`."""
    return {scheme: tuple(SCHEMES[scheme]) for scheme in TASKS[task].schemes} | dict(added)


def portable(words: Iterable[str]) -> list[str]:
    """Overrides with paths from the repository's root."""
    return [word.replace(f"{ROOT}/", "") for word in words]


def has_run(cell: Cell) -> bool:
    """Whether its file is there.

    Raises:
        ValueError: if that is of other overrides or other code, as where a scheme of one's own or the task has changed.
    """
    if not cell.file.is_file():
        return False
    kept, own, settings = json.loads(cell.file.read_text()), portable(cell.overrides), portable(cell.settings)
    sources = kept.get("sources", {})
    differs = [f"another {module}" for module in changed_since(sources, sources_now(sources))]
    if kept.get("scheme_overrides", own) != own:  # files of before don't say
        differs.append("other overrides")
    else:
        others = {word.partition("=")[0] for word in {*kept.get("overrides", settings)} ^ {*settings}}
        differs += [f"another {key}" for key in sorted(others - NOT_COMPARED)]
    if differs:
        raise ValueError(
            f"{cell.file} is of {cell.scheme} with {' and '.join(differs)}: choose another name, or move its files"
        )
    return True


def rate_cells(task: str, added: Schemes = NONE) -> list[Cell]:
    """The learning rates of each scheme, scored on the selection split; none where there is nothing to choose."""
    planned = TASKS[task]
    return [
        Cell(task, "rates", scheme, seed, rate, (*overrides, "trainer.evaluate_split=selection"))
        for seed in planned.rate_seeds
        for scheme, overrides in planned_schemes(task, added).items()
        if len(planned.rates_of(scheme)) > 1
        for rate in planned.rates_of(scheme)
    ]


def chosen_rate(task: str, scheme: str, added: Schemes = NONE) -> float | None:
    """The rate with the best mean accuracy on the selection split; None while a cell is missing."""
    rates = TASKS[task].rates_of(scheme)
    if len(rates) == 1:
        return rates[0]
    scores: dict[float, list[float]] = {rate: [] for rate in rates}
    for cell in rate_cells(task, added):
        if cell.scheme == scheme:
            if not has_run(cell):
                return None
            scores[cell.rate].append(json.loads(cell.file.read_text())["accuracy"]["after"])
    return max(scores, key=lambda rate: statistics.mean(scores[rate]))


def main_cells(task: str, added: Schemes = NONE) -> list[Cell]:
    """Every scheme with its own rate, seed by seed, as far as rates are chosen."""
    planned, schemes = TASKS[task], planned_schemes(task, added)
    rates = {scheme: chosen_rate(task, scheme, added) for scheme in schemes}
    return [
        Cell(task, "main", scheme, seed, rate, schemes[scheme])
        for seed in planned.every_seed
        for scheme, rate in rates.items()
        if rate is not None and seed in planned.seeds_of(scheme)
    ]


def control_cells(task: str, added: Schemes = NONE) -> list[Cell]:
    """Shuffled advantages at uniform's rate, supervised training for about the same time, and uniform credit at other
    rates that a scheme which might win was given: a scheme must not win by its rate.
    """
    planned, rate = TASKS[task], chosen_rate(task, "uniform")
    if rate is None:
        return []
    others = {chosen_rate(task, scheme, added) for scheme in (*planned.more_seeds, *added)} - {None, rate}
    others |= set(planned.uniform_rates)
    return [
        Cell(task, "controls", name, seed, rate, tuple(CONTROLS[name]))
        for seed in planned.every_seed
        for name in planned.controls
        if seed in planned.seeds_of(name)
    ] + [
        Cell(task, "controls", f"uniform_at_{other:g}", seed, other, ("credit=uniform",))
        for seed in planned.seeds_of("uniform")
        for other in sorted(others)
    ]


def variant_cells(task: str, added: Schemes = NONE) -> list[Cell]:
    """What else might make anchors win, at atrl's rate."""
    planned, rate = TASKS[task], chosen_rate(task, "atrl")
    if rate is None:
        return []
    return [
        Cell(task, "variants", name, seed, rate, tuple(VARIANTS[name]))
        for seed in planned.every_seed
        for name in planned.variants
        if seed in planned.seeds_of(name)
    ]


PHASES = {"rates": rate_cells, "main": main_cells, "controls": control_cells, "variants": variant_cells}


def checkpoint(task: str) -> Path:
    """Where the checkpoint of a task's own is kept, which it may share with another."""
    return CHECKPOINTS / f"{TASKS[task].checkpoint_of or task}_checkpoint" / "build"


def start_of(task: str) -> str | None:
    """Checksum of the weights that a task's runs start from; None if it has no checkpoint of its own, or not yet."""
    weights = checkpoint(task) / "model" / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None


def require_one_start(task: str) -> None:
    """Raises ValueError where a task's kept runs began with other weights than its further ones would."""
    own = start_of(task)
    kept = sorted((RESULTS / task).rglob("*.json")) if TASKS[task].checkpoint else []
    if any(own is None or json.loads(file.read_text()).get("checkpoint_sha256") != own for file in kept):
        raise ValueError(
            f"the runs in {RESULTS / task} began with another checkpoint than {checkpoint(task)}, so that further ones "
            "can't be compared with them: move that folder away to run all of the task again (--task geometry, say, "
            "starts from the shipped checkpoint)"
        )


def prepare(task: str) -> None:
    """Train the task's checkpoint, if it has one of its own and that is not there."""
    folder, asked = checkpoint(task), TASKS[task].checkpoint
    if asked and start_of(task) is None:
        command = [sys.executable, "train.py", *asked, "logger=csv", f"hydra.run.dir={folder}", "resume=auto"]
        subprocess.run(command, cwd=ROOT, check=True, preexec_fn=end_with_parent)


def run_cell(cell: Cell) -> str:
    """Train, keep what matters, delete the rest; the result appears whole or not at all.

    Raises:
        RuntimeError: the command and the end of what it said, if it failed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder, work = Path(temporary) / "run", Path(temporary) / "work"
        work.mkdir()  # a run leaves a link to itself where it is started
        command = [sys.executable, str(ROOT / "train.py"), *cell.settings, f"hydra.run.dir={folder}"]
        paths = os.pathsep.join(filter(None, (str(ROOT / "experiments"), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}  # for schemes of the study's own
        done = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, preexec_fn=end_with_parent
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        result = read_run(folder) | {"task": cell.task, "phase": cell.phase, "scheme": cell.scheme, "seed": cell.seed}
        result |= {"learning_rate": cell.rate, "overrides": portable(cell.settings)}
        result |= {"scheme_overrides": portable(cell.overrides), "checkpoint_sha256": start_of(cell.task)}
        cell.file.parent.mkdir(parents=True, exist_ok=True)
        beside = cell.file.with_suffix(".tmp")
        beside.write_text(json.dumps(result, indent=1) + "\n")
        shutil.move(beside, cell.file)
    return f"{cell.scheme} {cell.rate:g} seed {cell.seed}: {result['accuracy']['after']:.3f}"


def table(task: str) -> str:
    """Markdown of everything of a task that has run so far."""
    return study_table.table(RESULTS / task, IN_ORDER)


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def own_scheme(text: str) -> tuple[str, tuple[str, ...]]:
    """A scheme's name and its overrides, for argparse."""
    name, _, overrides = text.partition("=")
    if not name.isidentifier() or not overrides.strip():
        raise argparse.ArgumentTypeError(
            f"must be NAME='OVERRIDES', as mine='credit=mine credit.power=2', got {text!r}"
        )
    if name in IN_ORDER or name.startswith("uniform"):
        raise argparse.ArgumentTypeError(f"{name} is a name of the study's own: choose another")
    return name, tuple(shlex.split(overrides))


def run_missing(tasks: Sequence[str], *, jobs: int, cells: int | None, only: str | None, added: Schemes = NONE) -> None:
    """Run the cells that have no file, `jobs` at a time and no more than `cells` in all; of `only` one phase, if given.

    A phase is planned when those before it are over, since they choose its rates.
    """
    left, ran = cells, 0
    for task in tasks:
        if any(not has_run(cell) for phase in PHASES if only in (None, phase) for cell in PHASES[phase](task, added)):
            require_one_start(task)
    for task in tasks:
        for phase in PHASES if only is None else [only]:
            missing = [cell for cell in PHASES[phase](task, added) if not has_run(cell)][:left]
            left = None if left is None else left - len(missing)
            ran += len(missing)
            if missing:
                prepare(task)
            with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
                for number, line in enumerate(pool.map(run_cell, missing), start=1):
                    print(f"[{task} {phase} {number}/{len(missing)}] {line}", flush=True)
    if not ran:
        print(f"nothing is missing: to run a cell again, move its file out of {RESULTS}")


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the cells that are missing")
    run.add_argument("--jobs", type=positive, default=2, help="runs at a time, one thread each (default 2)")
    run.add_argument("--cells", type=positive, help="stop after so many")
    run.add_argument("--only", choices=list(PHASES), help="one phase alone")
    own = "also a scheme of your own; may be repeated"
    run.add_argument("--add", type=own_scheme, action="append", default=[], metavar="NAME='OVERRIDES'", help=own)
    shown_as = commands.add_parser("table", help="print what has run so far as Markdown")
    shown_as.add_argument("--folder", type=Path, help="of results (default experiments/study)")
    for command in (run, shown_as):
        command.add_argument("--task", choices=list(TASKS), help="one task alone (default: all, in this order)")
    arguments = parser.parse_args()
    tasks = list(TASKS) if arguments.task is None else [arguments.task]
    try:
        if arguments.command == "run":
            run_missing(
                tasks, jobs=arguments.jobs, cells=arguments.cells, only=arguments.only, added=dict(arguments.add)
            )
        else:
            print(study_table.tables(arguments.folder or RESULTS, tasks, IN_ORDER))
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped; said again, it goes on with the cells that have no file")


if __name__ == "__main__":
    main()

"""The study's bookkeeping: what is run, with which rate, and what the table says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.unit.refusals import refusal

SCRIPT = Path(__file__).parents[2] / "experiments" / "study.py"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The script as a module, with a folder of its own for results."""
    import sys

    spec = importlib.util.spec_from_file_location("study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "study", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def write(cell, accuracy: float, **more) -> None:
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    result = {"scheme": cell.scheme, "seed": cell.seed, "learning_rate": cell.rate, "accuracy": {"after": accuracy}}
    cell.file.write_text(json.dumps(result | {"curve": [accuracy / 2, accuracy], "anchors": {}} | more))


def test_every_cell_has_a_file_of_its_own(study):
    cells = study.rate_cells("geometry")
    assert len(cells) == 2 * 3 * len(study.SCHEMES) == len({cell.file for cell in cells})
    assert not {cell.file for cell in cells} & {cell.file for cell in study.rate_cells("wordy")}
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
    """Two rates of five schemes on one seed; of those that have their rate three seeds, or six."""
    cells = study.rate_cells("wordy")
    assert len(cells) == 5 * 2 and {cell.seed for cell in cells} == {100}
    for cell in cells:
        if cell.scheme in ("uniform", "anchor_only"):
            write(cell, 0.5)
    main = study.main_cells("wordy")
    both = [(scheme, seed) for seed in range(3) for scheme in ("uniform", "anchor_only")]
    assert [(cell.scheme, cell.seed) for cell in main] == [*both, *(("uniform", seed) for seed in (3, 4, 5))]
    assert study.variant_cells("wordy") == []  # atrl's rate is not chosen
    assert len(study.variant_cells("geometry")) == 0  # no rate is chosen there


def test_uniform_is_also_run_at_the_rate_of_what_might_win(study):
    """Both at the same rate: nothing to control. At two: six seeds of uniform at the other, and both differences."""
    for cell in study.rate_cells("wordy"):
        if cell.scheme in ("uniform", "oracle"):
            write(cell, 0.5 + (cell.rate == 2e-4) / 10)
    assert {cell.scheme for cell in study.control_cells("wordy")} == {"shuffled", "supervised"}
    for cell in study.rate_cells("wordy"):
        if cell.scheme == "oracle":
            write(cell, 0.5 + (cell.rate == 4e-4) / 10)
    extra = [cell for cell in study.control_cells("wordy") if cell.scheme == "uniform_at_0.0004"]
    assert [(cell.seed, cell.rate, cell.overrides) for cell in extra] == [
        (seed, 4e-4, ("credit=uniform",)) for seed in range(6)
    ]
    for cell in [*study.main_cells("wordy"), *extra]:
        if cell.seed < 2:
            write(cell, {"uniform": 0.5, "uniform_at_0.0004": 0.6}.get(cell.scheme, 0.7) + cell.seed / 10)
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:6] for row in study.table("wordy").splitlines()[2:]}
    assert rows["oracle"][0] == "0.0004"
    assert [cell.split(" ±")[0] for cell in rows["oracle"][3:5]] == ["+0.200", "+0.100"]
    assert [cell.split(" ±")[0] for cell in rows["uniform_at_0.0004"][3:5]] == ["+0.100", ""]


def test_intervals_by_hand(study):
    """Of 1, 2, 3: mean 2, standard deviation 1, t(2) = 4.303 over the root of 3."""
    mean, half = study.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / 3**0.5)


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


def test_every_override_composes(study):
    """So that no cell fails after hours: schemes, tasks and controls are configs that exist."""
    from hydra import compose, initialize_config_dir

    from atrl.config import check_config

    overrides = [["experiment=wordy"], *study.SCHEMES.values(), *study.VARIANTS.values()]
    for chosen in overrides:
        with initialize_config_dir(str(SCRIPT.parents[1] / "conf"), version_base="1.3"):
            config = compose("train", overrides=[*study.COMMON, *chosen])
        config.logger = None  # its folder is known to a run of Hydra's alone
        assert refusal(check_config, config) is None, chosen

"""What a sweep's page says that credit did, from figures worked out by hand."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest

from atrl.report.sweep import write_sweep_report
from atrl.report.sweep.credit import credit_block, numbers
from atrl.report.sweep.runs import find_runs
from atrl.report.sweep.statistics import Estimate
from atrl.report.sweep.table import make_table
from tests.sweep_folder import write_job

WEIGHTS, AUC, RECALL, FLAT = "credit/weight_std", "credit/anchor_auc", "credit/anchor_recall", "reward/flat_groups"


@pytest.fixture
def sweep(tmp_path):
    """Uniform credit beside a scheme that finds what reads, over two seeds."""
    write_job(tmp_path / "0", credit="uniform", metrics={WEIGHTS: [0.0, 0.0], FLAT: [0.5, 0.25]})
    write_job(tmp_path / "1", number=1, credit="uniform", seed=1, metrics={WEIGHTS: [0.0, 0.0], FLAT: [0.25, 0.0]})
    write_job(tmp_path / "2", number=2, metrics={WEIGHTS: [0.4, 0.6], AUC: [0.9, 0.7], RECALL: [0.5, 1.0]})
    write_job(tmp_path / "3", number=3, seed=1, metrics={WEIGHTS: [0.6, 0.8], AUC: [0.8, 0.8], RECALL: [0.5, 0.5]})
    return tmp_path


def test_means_over_steps_and_seeds_by_hand(sweep):
    """Of runs with 0.5 and 0.7: 0.6 ± 12.706·0.1; recall 0.75 and 0.5: 62.5 ± 12.706·12.5 = 158.8 %; both AUC 80 %;
    groups 37.5 and 12.5 %: 25 ± 158.8. The summaries' overheads are all 1.69 %."""
    table = make_table(find_runs([sweep]))
    block = credit_block(table)
    heads = ["credit", "anchor AUC, %", "anchor recall, %", "spread of weights", "credit overhead, %", "flat groups, %"]
    assert [column.title for column in block.columns] == heads
    assert [[column.text(row) for column in block.columns] for row in table.rows] == [
        ["uniform", "–", "–", "0", "1.69", "25 ± 159"],
        ["atrl", "80", "62 ± 159", "0.6 ± 1.3", "1.69", "–"],
    ]
    assert [title for title, _ in block.notes] == [head.removesuffix(", %") for head in heads[1:]]


@pytest.mark.parametrize(
    ("mean", "half", "shown"),
    [
        (0.54889, 0.00464, "0.5489 ± 0.0046"),
        (0.402, 0.737, "0.40 ± 0.74"),
        (97.56, 12.4, "98 ± 12"),
        (62.5, 158.83, "62 ± 159"),
        (0.5, 0.0996, "0.50 ± 0.10"),
        (0.5, 1e-9, "0.500000 ± 0.000000"),
        (-1.26, 1.3, "−1.3 ± 1.3"),
        (0.0123456, None, "0.0123"),
    ],
)
def test_two_digits_of_the_half_width_are_shown(mean, half, shown):
    assert numbers(Estimate(mean, half, 3)) == shown and numbers(None) == "–"


def test_a_scheme_that_measures_nothing_of_credit_has_no_block(tmp_path):
    write_job(tmp_path / "0", credit="none", metrics={FLAT: [0.5, 0.25], "loss/gradient_norm": [1.0, 2.0]})
    assert credit_block(make_table(find_runs([tmp_path]))) is not None  # the summary says an overhead
    file = tmp_path / "0" / "summary.json"
    summary = json.loads(file.read_text())
    summary["credit"]["overhead_fraction"] = None
    file.write_text(json.dumps(summary))
    assert credit_block(make_table(find_runs([tmp_path]))) is None and credit_block(make_table([])) is None
    text = write_sweep_report([tmp_path], tmp_path).read_text(encoding="utf-8")
    assert "What credit did" not in text and "Gradient norm" not in text


def test_the_page_has_the_block_and_its_curves(sweep):
    text = write_sweep_report([sweep], sweep).read_text(encoding="utf-8")
    _, found, block = text.partition("What credit did")
    block = block.partition("</section>")[0]
    assert found and re.findall(r"<h3>([^<]*)</h3>", block) == [
        "AUC of the scores", "Anchor recall", "Spread of the weights", "Groups without a signal",
    ]  # fmt: skip
    assert "<td>0.6 ± 1.3</td>" in block and "Gradient norm" not in block
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_csv_has_the_measures_in_full(sweep):
    write_sweep_report([sweep], sweep)
    lines = list(csv.DictReader(io.StringIO((sweep / "sweep.csv").read_text(encoding="utf-8"))))
    assert [line["anchor recall mean"] for line in lines] == ["", "0.625"]
    assert float(lines[1]["anchor recall half of 95 % interval"]) == pytest.approx(12.7062 * 0.125, abs=1e-4)
    assert lines[1]["anchor AUC half of 95 % interval"] == "" and lines[0]["spread of weights mean"] == "0.0"

"""What a sweep's page says first: who is crowned, and what one seed, two seeds and equal differences leave open."""

from __future__ import annotations

import re
import shutil

import pytest

from atrl.report.sweep import write_sweep_report
from atrl.report.sweep.headline import baseline_name, headline, rows_in_words
from atrl.report.sweep.runs import find_runs
from atrl.report.sweep.table import make_table
from tests.report_run import HOSTILE
from tests.sweep_folder import write_job


@pytest.fixture
def table(tmp_path):
    """`table(uniform=[…], atrl=[…], four=[…])`: accuracies by seed, of rows in this order; None leaves a seed out."""
    settings = {
        "uniform": {"credit": "uniform"}, "atrl": {"credit": "atrl"}, "none": {"credit": "none"},
        "four": {"credit": "atrl", "credit__num_clusters": 4}, "two": {"credit": "atrl", "credit__num_clusters": 2},
    }  # fmt: skip

    def make(**rows: list[float | None]):
        for older in tmp_path.iterdir():
            shutil.rmtree(older)
        jobs = [(settings[name], seed, value) for name, values in rows.items() for seed, value in enumerate(values)]
        for number, (chosen, seed, value) in enumerate(jobs):
            if value is not None:
                write_job(tmp_path / str(number), number=number, seed=seed, accuracy=value, **chosen)
        return make_table(find_runs([tmp_path]))

    return make


def test_a_row_that_is_told_from_the_baseline_is_crowned(table):
    """0.09, 0.1, 0.11: mean 0.1, s = 0.01, half 4.303·0.01/√3 = 0.0248; t = 10·√3, p = 1 - t/√(2 + t²) = 0.0033."""
    found = headline(table(uniform=[0.5, 0.5, 0.5], atrl=[0.59, 0.6, 0.61]))
    assert found.crowned and found.row.number == 2
    assert (found.title, found.words) == ("Best held-out accuracy", "60.0 ± 2.5 %")
    (sentence,) = found.sentences
    assert sentence == (
        "+10.0 ± 2.5 points over credit=uniform, seed by seed, p (Holm) = 0.0033: 3 seeds of 512 problems."
    )
    assert found.cautions == []


def test_a_row_that_is_not_told_from_it_is_not(table):
    """-0.1, 0.1, 0.3: mean 0.1, s = 0.2, half 4.303·0.2/√3 = 0.4968; t = √3/2, p = 1 - t/√(2 + t²) = 0.4778."""
    found = headline(table(uniform=[0.5, 0.5, 0.5], atrl=[0.4, 0.6, 0.8]))
    assert not found.crowned and found.row is None and found.words == "No row is told from credit=uniform"
    assert found.sentences == [
        "The difference is +10.0 ± 49.7 points in row 2 (credit=atrl), p (Holm) = 0.48: 3 seeds of 512 problems."
    ]


def test_holms_correction_decides(table):
    """Mean 0.1 and s = 0.02·√3: t = 5, p = 1 - 5/√27 = 0.0377; as the lesser of two it counts twice."""
    just = [0.6 - 0.02 * 3**0.5, 0.6, 0.6 + 0.02 * 3**0.5]
    assert headline(table(uniform=[0.5, 0.5, 0.5], atrl=just)).crowned
    found = headline(table(uniform=[0.5, 0.5, 0.5], atrl=just, four=[0.5, 0.4, 0.6]))
    assert not found.crowned and "p (Holm) = 0.075" in found.sentences[0]


def test_rows_without_a_test_are_no_part_of_holms_correction_as_the_page_says(table, tmp_path):
    """One row of equal differences and one of a single seed: the third alone is tested, p = 0.0377 as above."""
    just = [0.6 - 0.02 * 3**0.5, 0.6, 0.6 + 0.02 * 3**0.5]
    rows = table(uniform=[0.5, 0.5, 0.5], atrl=just, four=[0.51, 0.51, 0.51], two=[0.7]).rows
    assert [row.adjusted for row in rows] == [None, pytest.approx(0.0377, abs=1e-4), None, None]
    assert "p (Holm): the same, corrected for the number of rows that have one;" in _page(tmp_path)[1]


def test_what_is_told_below_is_said(table):
    found = headline(table(uniform=[0.5, 0.5, 0.5], atrl=[0.39, 0.4, 0.41], four=[0.5, 0.4, 0.6]))
    assert found.words == "No row is told above credit=uniform" and not found.crowned
    assert found.sentences[-1] == "Told below: row 2."


def test_rows_that_tie_are_not_crowned(table):
    """Both are told from the baseline, and neither is ahead of the other."""
    found = headline(table(uniform=[0.5, 0.5, 0.5], atrl=[0.59, 0.6, 0.61], four=[0.61, 0.6, 0.59]))
    assert (found.crowned, found.row, found.words) == (False, None, "Rows 2 and 3 tie at 60.0 %")
    assert found.sentences == ["Told above credit=uniform: rows 2 and 3."]


def test_rows_that_tie_and_are_told_from_nothing(table):
    found = headline(table(uniform=[0.5, 0.5, 0.5], atrl=[0.4, 0.6, 0.8], four=[0.8, 0.6, 0.4]))
    assert found.words == "No row is told from credit=uniform" and found.row is None
    assert found.sentences == ["Rows 2 and 3 tie at +10.0 points."]


def test_of_several_that_are_told_the_best_is_crowned_with_a_word_on_the_others(table):
    found = headline(table(uniform=[0.5, 0.5, 0.5], atrl=[0.59, 0.6, 0.61], four=[0.61, 0.62, 0.63]))
    assert found.crowned and found.row.number == 3
    assert found.sentences[1] == "Told above credit=uniform: rows 2 and 3. These are not tested against each other."


def test_the_highest_mean_may_be_another_than_what_is_told(table):
    found = headline(table(uniform=[0.5, 0.5, 0.5], atrl=[0.59, 0.6, 0.61], four=[0.5, 0.6, 0.9]))
    assert not found.crowned and found.words == "The highest mean, 66.7 ± 51.7 %, is not told from its baseline"
    assert found.sentences == ["Told above credit=uniform: row 2."]


def test_one_seed_says_nothing_of_chance(table):
    found = headline(table(uniform=[0.5], atrl=[0.6]))
    assert found.words == "No row is told from credit=uniform"
    assert found.sentences == ["The difference is +10.0 points in row 2 (credit=atrl): 1 seed of 512 problems."]
    assert found.cautions == ["One seed says nothing of chance: its figures have no interval and no test."]


def test_two_seeds_hardly_tell(table):
    """0.1 and 0.3: mean 0.2, half 12.706·0.1 = 1.2706."""
    found = headline(table(uniform=[0.5, 0.5], atrl=[0.6, 0.8]))
    assert "+20.0 ± 127.1 points" in found.sentences[0] and "2 seeds of 512" in found.sentences[0]
    assert found.cautions == [
        "Two seeds hardly tell: by Student’s t their intervals reach 12.7 standard errors to each side."
    ]


def test_cautions_name_the_rows_where_it_is_not_all(table):
    found = headline(table(uniform=[0.5, 0.5, 0.4], atrl=[0.6, 0.8, 0.5], four=[0.6], two=[None, 0.4, 0.6]))
    assert [caution.partition(" say")[0].partition(" hardly")[0] for caution in found.cautions] == [
        "One seed (row 3)", "Two seeds (row 4)",
    ]  # fmt: skip


@pytest.mark.parametrize(("gain", "shown"), [(0.0, "+0.0"), (0.1, "+10.0")])
def test_equal_differences_prove_nothing(table, gain, shown):
    rows = table(uniform=[0.5, 0.6, 0.4], atrl=[0.5 + gain, 0.6 + gain, 0.4 + gain])
    found = headline(rows)
    assert found.words == "No row is told from credit=uniform" and rows.rows[1].compared.difference.half is None
    assert found.sentences == [f"The difference is {shown} points in row 2 (credit=atrl): 3 seeds of 512 problems."]
    assert found.cautions[0].startswith(f"All differences of row 2 are equal ({shown}). That shows no spread")


def test_a_row_alone_and_rows_without_a_common_seed(table, tmp_path):
    alone = headline(table(uniform=[0.5, 0.5, 0.5]))
    assert (alone.crowned, alone.words) == (False, "50.0 %") and alone.row.number == 1
    found = headline(table(uniform=[0.5, 0.5, 0.5], atrl=[None, None, None, 0.9]))
    assert not found.crowned and found.words == "No row can be compared with credit=uniform" and found.row is None
    assert found.sentences == ["No row shares a measured seed with its baseline."]
    assert headline(make_table([])) is None


def test_rows_whose_baseline_has_not_finished_are_said_to_have_none(tmp_path):
    """Both are of seed 0, so that a seed is shared; what is missing is the run that the second would go by."""
    for number, (credit, steps) in enumerate((("uniform", 3), ("atrl", 9))):
        write_job(tmp_path / str(number), number=number, credit=credit, trainer__max_steps=steps)
    found = headline(make_table(find_runs([tmp_path]), baseline={"credit": "uniform"}))
    assert found.sentences == ["No row shares a measured seed with its baseline."]
    for number, seed in enumerate((*range(3), *range(3)), 2):
        credit, accuracy = ("atrl", 0.47 + 0.01 * seed) if number >= 5 else ("uniform", 0.4)
        write_job(tmp_path / str(number), number=number, seed=seed + 1, credit=credit, accuracy=accuracy,
                  trainer__max_steps=3)  # fmt: skip
    found = headline(make_table(find_runs([tmp_path]), baseline={"credit": "uniform"}))
    assert found.words == "The highest mean, 50.0 %, has no baseline to be compared with" and found.row.number == 2
    assert found.sentences == ["Told above credit=uniform, trainer.max_steps=3: row 3."]


def test_of_rows_that_are_not_told_the_highest_difference_is_named_though_a_lower_one_is_larger(table):
    found = headline(table(uniform=[0.5, 0.5], atrl=[0.1, 0.3], four=[0.4, 0.52]))
    assert found.sentences[0].startswith("The highest difference is −4.0 ± 76.2 points in row 3")


def test_problems_are_left_out_where_runs_differ_by_them(table, tmp_path):
    table(uniform=[0.5], atrl=[0.6])
    file = tmp_path / "1" / "summary.json"
    file.write_text(file.read_text().replace('"samples": 512', '"samples": null'))
    found = headline(make_table(find_runs([tmp_path])))
    assert found.sentences == ["The difference is +10.0 points in row 2 (credit=atrl): 1 seed."]


def test_baselines_and_rows_in_words(table):
    rows = table(uniform=[0.5], atrl=[0.6], four=[0.6])
    assert baseline_name(rows) == "credit=uniform"
    assert [rows_in_words(rows.rows[:n]) for n in (1, 2, 3)] == ["row 1", "rows 1 and 2", "rows 1, 2 and 3"]


def test_of_several_baselines_each_row_has_its_own(tmp_path):
    """The highest mean is a baseline's, and both rows are told from theirs: each by 0.1 with s = 0.01, p = 0.0033."""
    gains = {("uniform", 3): 0.3, ("atrl", 3): 0.4, ("uniform", 9): 0.7, ("atrl", 9): 0.6}
    for number, (credit, steps, seed) in enumerate((*row, seed) for row in gains for seed in range(3)):
        accuracy = gains[credit, steps] + (0.01 * seed if credit == "atrl" else 0.01)
        write_job(tmp_path / str(number), number=number, seed=seed, credit=credit, accuracy=accuracy,
                  trainer__max_steps=steps)  # fmt: skip
    found = headline(make_table(find_runs([tmp_path]), baseline={"credit": "uniform"}))
    assert (found.crowned, found.words) == (False, "The highest mean, 71.0 %, is a baseline’s")
    assert found.sentences == ["Told above its baseline: row 2."]


def _page(folder) -> tuple[str, str]:
    text = write_sweep_report([folder], folder).read_text(encoding="utf-8")
    return text, re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", text))


def test_the_page_crowns_and_colours_who_is_told_alone(table, tmp_path):
    table(uniform=[0.5, 0.5, 0.5], atrl=[0.59, 0.6, 0.61])
    text, shown = _page(tmp_path)
    assert "Best held-out accuracy" in shown and text.count('class="best"') == 1 and "with hindsight" in shown


def test_the_page_crowns_nobody_where_nobody_is_told(table, tmp_path):
    table(uniform=[0.5, 0.5], atrl=[0.6, 0.8])
    text, shown = _page(tmp_path)
    assert "No row is told from credit=uniform" in shown and "Two seeds hardly tell" in shown
    assert 'class="best"' not in text and "with hindsight" not in shown and "Best held-out" not in shown


def test_what_is_drawn_of_an_interval_ends_at_0_and_100_percent(table, tmp_path):
    """0.6 and 0.8: 0.7 ± 1.2706 would reach from -57.1 to 197.1 %; the ± says so, the bar and its limits end before."""
    table(uniform=[0.5, 0.5], atrl=[0.6, 0.8])
    text, shown = _page(tmp_path)
    assert "70.0 ± 127.1" in shown and 'title="0.0 to 100.0 %"' in text
    assert re.findall(r'class="reach" style="left:([\d.]+)%;width:([\d.]+)%"', text)[1] == ("0.0", "100.0")


def test_settings_in_the_headline_stay_text(tmp_path):
    write_job(tmp_path / "0", credit__num_clusters=HOSTILE)
    write_job(tmp_path / "1", number=1, credit__num_clusters=2)
    text, _ = _page(tmp_path)
    assert "No row is told from credit.num_clusters=&lt;/script&gt;" in text and HOSTILE not in text

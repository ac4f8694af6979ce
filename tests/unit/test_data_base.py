"""Splits and subsets that depend on ids and a seed alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atrl.data.base import assign_split, seeded_subset, uniform_hash
from atrl.types import Problem


@settings(deadline=None)
@given(st.text(), st.integers())
def test_uniform_hash_is_in_the_unit_interval(key, seed):
    assert 0 <= uniform_hash(key, seed) < 1


def test_uniform_hash_is_the_documented_one():
    """``printf 0/a | sha256sum`` begins with d3216b8d."""
    assert uniform_hash("a", 0) == pytest.approx(0xD3216B8D / 2**32, abs=2**-32)


def test_raising_the_selection_fraction_leaves_test_alone():
    keys = [str(index) for index in range(1000)]

    def of(selection: float) -> list[str]:
        return [assign_split(key, seed=0, selection_fraction=selection, test_fraction=0.3) for key in keys]

    assert [split == "test" for split in of(0.0)] == [split == "test" for split in of(0.5)]
    assert abs(of(0.5).count("selection") - 500) < 64  # 4 standard deviations of binomial(1000, 0.5)


def test_seeded_subset_is_nested():
    problems = [Problem(id=str(index), question="?", answer="1") for index in range(50)]
    three, ten = (seeded_subset(problems, limit, seed=0) for limit in (3, 10))
    assert [p for p in ten if p in three] == three
    assert seeded_subset(problems, None, seed=0) == seeded_subset(problems, 99, seed=0) == problems

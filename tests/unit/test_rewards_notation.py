"""How answers are read before math-verify sees them."""

from __future__ import annotations

import pytest

from atrl.rewards.notation import Kind, blanks, given_blanks, is_prose, kind_of, same_words, spell_mixed


@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        ("A", Kind.LETTER),
        ("(B)", Kind.LETTER),
        ("C.", Kind.LETTER),
        ("$D$", Kind.LETTER),
        (r"\text{J}", Kind.LETTER),
        ("K", Kind.MATHS),
        ("a", Kind.MATHS),
        ("AB", Kind.WORDS),
        ("Yes", Kind.WORDS),
        ("Product D", Kind.WORDS),
        (r"\text{isosceles triangle}", Kind.WORDS),
        ("③④", Kind.WORDS),
        ("是", Kind.WORDS),
        (">", Kind.WORDS),
        ("$=$", Kind.WORDS),
        ("≥", Kind.WORDS),
        ("x", Kind.MATHS),
        ("π", Kind.MATHS),
        ("$ab$", Kind.MATHS),
        ("Q2", Kind.MATHS),
        ("28", Kind.MATHS),
        ("x = y", Kind.MATHS),
        (r"4\sqrt{3}", Kind.MATHS),
        ("12 cm", Kind.MATHS),
    ],
)
def test_kind_of_gold(gold, kind):
    assert kind_of(gold) is kind


@pytest.mark.parametrize(
    ("gold", "parts"),
    [
        ("8\n4", ["8", "4"]),
        (r"$$\dfrac{5}{12}$$ $$\dfrac{1}{4}$$", [r"$$\dfrac{5}{12}$$", r"$$\dfrac{1}{4}$$"]),
        ("$$x=-4$$,$$y=-2$$", ["$$x=-4$$,$$y=-2$$"]),
        ("\n 28 \n", ["28"]),
        (" ", []),
    ],
)
def test_blanks_are_lines_or_formulas_side_by_side(gold, parts):
    assert blanks(gold) == parts


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        ("8, 4", ["8", "4"]),
        ("8; 4", ["8", "4"]),
        ("8 and 4", ["8", "4"]),
        ("8\n4", ["8", "4"]),
        ("$8$ $4$", ["$8$", "$4$"]),
        ("(1, 2), 5", ["(1, 2)", "5"]),
        (r"\{1, 2\}; [3, 4)", [r"\{1, 2\}", "[3, 4)"]),
        (",", []),
    ],
)
def test_given_blanks_are_split_outside_of_brackets(answer, parts):
    assert given_blanks(answer) == parts


def test_words_are_compared_without_marks_and_case():
    assert same_words("Yes", r"$\text{yes}$.")
    assert same_words("≥", r"\geq")
    assert same_words("Product D", "product  d")
    assert not same_words("Product D", "D")
    assert not same_words("AB", "BA")


def test_prose_is_three_words():
    assert is_prose("The angle is 100°")
    assert is_prose(r"\text{The answer is } 5")
    assert not is_prose("5 apples")
    assert not is_prose(r"\frac{\sin x}{\cos x} \cdot \tan x")


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("2 1/2", "(2+1/2)"),
        ("It takes 2½ h", "It takes (2+1/2) h"),
        (r"2\,1/2", "(2+1/2)"),
        ("½", " 1/2"),
        ("2 3/2", "2 3/2"),
        ("1 2 1/2", "1 2 1/2"),
        ("x_2 1/2", "x_2 1/2"),
        ("1 234/500", "1 234/500"),
    ],
)
def test_mixed_numbers_are_sums(text, spelled):
    assert spell_mixed(text) == spelled

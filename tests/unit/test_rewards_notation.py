"""How answers are read before math-verify sees them."""

from __future__ import annotations

import pytest

from atrl.rewards.notation import (
    Kind,
    blanks,
    given_blanks,
    is_prose,
    kind_of,
    metric_unit,
    same_words,
    to_latex,
)


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
    ("answer", "latex"),
    [
        ("28", "$28$"),
        ("$28$", "$28$"),
        ("$$9$$", "$9$"),
        (r"\(9\)", "$9$"),
        ("12.", "$12$"),
        ("$50{}^\\circ $.", "$50$"),
        ("142°", "$142$"),
        (r"60^{\circ}", "$60$"),
        (r"105\degree", "$105$"),
        ("50°30'", r"$(50+\frac{30}{60})$"),
        ("50° 20", None),
        ("12 cm", "$12$"),
        (r"12\text{ cm}^2", "$12$"),
        (r"12\,\mathrm{cm}^{2}", "$12$"),
        (r"50πm^{2}", r"$50\pi$"),
        ("9米", "$9$"),
        ("2x cm", "$2x cm$"),
        ("8√{3}", r"$8\sqrt{3}$"),
        ("√12", r"$\sqrt{12}$"),
        ("√2.5", r"$\sqrt{2.5}$"),
        ("5不对", "$5不对$"),
        ("√(x+1)", r"$\sqrt{x+1}$"),
        ("5²", "$5^{2}$"),
        (r"2\text{n}-1", "$2n-1$"),
        ("1 234", "$1234$"),
        (r"1\,234\,567", "$1234567$"),
        ("1 2", None),
        ("2 3/4", None),
        (r"\frac 1 2", r"$\frac{1}{2}$"),
        ("45%", "$45$%"),
        (r"45\%", "$45$%"),
        ("1:3:2", "$(1,3,2)$"),
        ("1:1", "$1:1$"),
        ("x ≥ 5", r"$x \ge 5$"),
        (r"x \geq 5", r"$x \ge 5$"),
        ("Answer: 5", "$5$"),
        ("−5", "$-5$"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"$\begin{pmatrix}1\\2\end{pmatrix}$"),
        ("", None),
        ("$$", None),
    ],
)
def test_to_latex(answer, latex):
    assert to_latex(answer) == latex


@pytest.mark.parametrize(
    ("answer", "unit"),
    [
        ("12 cm", "cm^1"),
        (r"$12\,\mathrm{cm}^{2}$.", "cm^2"),
        ("50π m²", "m^2"),
        (r"\frac{1}{2}\text{ km}", "km^1"),
        ("12", None),
        ("12厘米", None),  # the same as 12 cm, which nobody looks up
        ("2x cm", None),  # a formula
        ("12 %", None),
        ("", None),
    ],
)
def test_metric_units(answer, unit):
    assert metric_unit(answer) == unit


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

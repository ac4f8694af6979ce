"""How mathematics is rewritten before math-verify sees it."""

from __future__ import annotations

import pytest

from atrl.rewards.formula import read, to_latex


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
        (r"30^\circ C", "$30$"),
        ("2x°", "$2x$"),
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
        ("10⁻¹²", "$10^{-12}$"),
        ("1.5e-3", r"$1.5 \times 10^{-3}$"),
        ("3 x 10^8", r"$3\times 10^8$"),
        ("2e", "$2e$"),
        ("5pi", r"$5\pi$"),
        (r"2\text{n}-1", "$2n-1$"),
        ("1 234", "$1234$"),
        (r"1\,234\,567", "$1234567$"),
        ("1 2", None),
        ("2 3/4", "$(2+3/4)$"),
        ("-2 3/4 cm", "$-(2+3/4)$"),
        ("x = 2½", "$x = (2+1/2)$"),
        ("2 4/3", None),  # no mixed number
        ("1 2 3/4", None),
        ("2(3/4)", r"$2 \cdot (3/4)$"),  # a product: math-verify takes it for a mixed number
        (r"\frac 1 2", r"$\frac{1}{2}$"),
        ("45%", "$45$%"),
        ("45 percent", "$45$%"),
        (r"45 \text{ percent}", "$45$%"),
        (r"45\%", "$45$%"),
        ("1:3:2", "$(1,3,2)$"),
        ("1:1", "$1:1$"),
        ("x ≥ 5", r"$x \ge 5$"),
        (r"x \geq 5", r"$x \ge 5$"),
        ("Answer: 5", "$5$"),
        ("**Answer:** 5", "$5$"),
        ("**-5**", "$-5$"),
        ("x**2", "$x**2$"),
        ("≈ 5", "$5$"),
        (r"\text{5 m/s}", "$5$"),
        (r"\text{Area} = 12 \text{ cm}^2", "$Area = 12$"),
        ("A(3, 2)", "$(3, 2)$"),
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
        (r"x = 12\text{ cm}", "cm^1"),
        ("30°", "degree^1"),
        (r"30^\circ\text{C}", "degC^1"),
        ("30 degrees Fahrenheit", "degF^1"),
        (r"\$1,234.50", "dollar^1"),
        ("$5", "dollar^1"),
        ("€5", "euro^1"),
        ("$5$", None),
        ("12", None),
        ("12厘米", None),  # the same as 12 cm, which nobody looks up
        ("2x cm", None),  # a formula
        ("12 %", None),
        ("", None),
    ],
)
def test_the_unit_of_an_answer(answer, unit):
    assert read(answer)[1] == unit

r"""The value of a LaTeX expression as a Python number, without evaluating Python.

MathVision's code turns LaTeX into sympy, prints that and passes it to ``eval`` where the names of `math` are known.
Here the sympy expression itself is taken to a number: what ``eval`` would have refused (free symbols, sympy's own
names as ``oo`` or ``Matrix``) is refused likewise. Its parser (latex2sympy2) reads as far as it understands, so an
unmatched closing brace ends an expression; and it takes a degree sign for a symbol. It runs in a worker with limits,
and on nothing longer than `LONGEST`.
"""

from __future__ import annotations

import math
import re

LONGEST = 1000
"""Characters of an expression that is read."""


_TOWER = re.compile(r"\^ ?\{[^{}]*\^ ?\{[^{}]*\^|[0-9]{5,} ?!|![^{}]*!")
"""What no answer is, and would only run into the limits: powers of powers of powers, huge factorials."""
_NO_NUMBERS = ("\\circ", "\\$")
_INTEGER, _DECIMAL = re.compile(r"-?[0-9]{1,15}"), re.compile(r"-?[0-9]{0,15}\.[0-9]{1,15}")
_SYMBOL = re.compile(r"[a-df-zA-DF-Z]")
"""A letter by itself, but for Euler's number."""


class NoValue(Exception):
    """The text is no expression that has a number as its value."""


def latex_value(text: str) -> float | int:
    r"""The value of ``\frac{1}{2}``, ``3 \cdot 4``, ``\sqrt{2}`` …

    Raises:
        NoValue: if it can't be read, holds symbols, or is no finite real number.
    """
    text = _before_unmatched_brace(text)
    if not text.strip() or len(text) > LONGEST or any(sign in text for sign in _NO_NUMBERS):
        raise NoValue
    if _TOWER.search(text):
        raise NoValue
    try:
        return _plain_number(text.strip()) if _is_plain(text.strip()) else _number(_parsed(text))
    except NoValue:
        raise
    except Exception as error:  # the parser and sympy raise nearly anything on broken input
        raise NoValue from error


def _is_plain(text: str) -> bool:
    """Whether the parser, which takes milliseconds, has nothing to say: most answers are numbers or letters."""
    return any(pattern.fullmatch(text) for pattern in (_INTEGER, _DECIMAL, _SYMBOL))


def _plain_number(text: str) -> float | int:
    if _SYMBOL.fullmatch(text):
        raise NoValue
    if _INTEGER.fullmatch(text):
        return int(text)
    import sympy

    return _number(sympy.Float(text))


def _parsed(text: str):
    from latex2sympy2_extended import latex2sympy

    return latex2sympy(text)


def _before_unmatched_brace(text: str) -> str:
    depth = 0
    for place, sign in enumerate(text[: LONGEST + 1]):
        depth += (sign == "{") - (sign == "}")
        if depth < 0:
            return text[:place]
    return text


def _number(expression) -> float | int:
    import sympy

    if not isinstance(expression, sympy.Expr) or expression.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan, sympy.I):
        raise NoValue
    if any(isinstance(node, _beyond_arithmetic(sympy)) for node in sympy.preorder_traversal(expression)):
        raise NoValue
    known = {sympy.Symbol("e"): math.e, sympy.Symbol("pi"): math.pi, sympy.Symbol("tau"): math.tau}
    if not expression.free_symbols <= known.keys():
        raise NoValue
    worked_out = expression.doit()
    if worked_out.is_Integer:
        return int(worked_out)
    value = float(worked_out.subs(known).evalf())
    if not math.isfinite(value):
        raise NoValue
    return value


def _beyond_arithmetic(sympy) -> tuple[type, ...]:
    """What sympy prints under a name that `math` does not have."""
    unknown = (sympy.Abs, sympy.Max, sympy.Min, sympy.sign, sympy.Piecewise)
    return (*unknown, sympy.Integral, sympy.Derivative, sympy.Limit, sympy.Sum, sympy.Product)

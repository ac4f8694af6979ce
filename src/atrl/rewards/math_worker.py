"""What runs in the worker processes of `MathAnswer`: math-verify, without time limits of its own.

math-verify bounds its time by alarm signals, which work only in a main thread and never stop a long operation
in C. Here it may take as long as it likes: the process is killed from outside.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache
from typing import Any

_GROWN = 256 * 2**20  # bytes


def prepare() -> None:
    """Load math-verify and its grammar, so that no answer's time limit pays for them."""
    logging.disable(logging.CRITICAL)  # it warns of every limit that is switched off
    judge("$1$", "$1$", False, 6)
    global _size_at_start
    _size_at_start = _size()


def readable(gold: str) -> bool:
    """Whether math-verify reads the LaTeX formula `gold`."""
    return bool(_read(gold))


def judge(gold: str, answer: str, prose: bool, float_rounding: int) -> tuple[bool, bool]:
    """Whether `answer` could be read, and whether it equals `gold`.

    Args:
        gold: a LaTeX formula in dollars.
        answer: the same, or, with `prose`, a text in which math-verify looks for the last formula or number.
        float_rounding: decimals to which floats are compared.
    """
    from math_verify import verify

    found = _search(answer) if prose else _read(answer)
    right = bool(found) and verify(list(_read(gold)), list(found), float_rounding=float_rounding, timeout_seconds=None)
    _forget_if_grown()
    return bool(found), bool(right)


def judge_whole(response: str, gold: str) -> tuple[bool, bool]:
    """Whether anything was found in `response`, and whether ``verify(parse(response), parse(gold))`` holds."""
    from math_verify import parse, verify

    found = parse(response, parsing_timeout=None)
    right = bool(found) and verify(found, parse(gold, parsing_timeout=None), timeout_seconds=None)
    _forget_if_grown()
    return bool(found), bool(right)


@lru_cache(maxsize=64)
def _read(latex: str) -> tuple[Any, ...]:
    """Only as LaTeX: math-verify's other reader would pick a lone number out of a broken formula.

    Its list of units drops the "t" of 5t and all text at the end: `formula.read` has taken off those that are units.
    """
    from math_verify import LatexExtractionConfig, parse

    config = LatexExtractionConfig()
    config = replace(config, normalization_config=replace(config.normalization_config, units=False))
    return tuple(parse(latex, [config], fallback_mode="no_fallback", parsing_timeout=None))


def _search(text: str) -> tuple[Any, ...]:
    from math_verify import parse

    return tuple(parse(text, fallback_mode="no_fallback", parsing_timeout=None))


def _forget_if_grown() -> None:
    """Drop what sympy and math-verify cache, lest one huge answer starve the next ones of memory."""
    if _size() - _size_at_start > _GROWN:
        from math_verify import parser
        from sympy.core.cache import clear_cache

        clear_cache()
        for cached in (_read, parser.parse_latex_cached, parser.parse_expr_cached, parser.extract_latex):
            cached.cache_clear()


def _size() -> int:
    import psutil

    return psutil.Process().memory_info().vms


_size_at_start = 2**63

"""Finding the final answer, and what the exact and format parts make of it."""

from __future__ import annotations

import pytest

from atrl.rewards.base import Verdict
from atrl.rewards.exact import ExactAnswer, normalise
from atrl.rewards.extract import boxed_spans, final_answer, last_line
from atrl.rewards.format import BoxedFormat
from atrl.types import Problem

MEGA = 1_000_000


def problem(answer: str) -> Problem:
    return Problem(id="p1", question="What?", answer=answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} no, \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a \} b}", r"a \} b"),
        (r"\boxed{x\\}", r"x\\"),
        (r"\boxed{4} then \boxed{5", "4"),
        (r"} \boxed{6}", "6"),
        (r"\boxed{{8}", None),
        (r"\boxed{}", ""),
        ("<answer>1</answer> <answer> 2 </answer>", " 2 "),
        (r"\boxed{1} <answer>2</answer>", "1"),
        (r"\boxed{1 <answer>2</answer>", "2"),
        ("<answer>1</answer> <answer>2", "1"),
        ("</answer> 3 <answer>", None),
        ("the answer is 5", None),
        ("", None),
    ],
)
def test_final_answer_is_the_last_balanced_box_or_else_the_last_tagged_one(text, answer):
    assert final_answer(text) == answer


def test_spans_are_those_of_the_contents_by_start():
    assert boxed_spans(r"\boxed{a\boxed{b}}\boxed{c}") == [(7, 17), (15, 16), (25, 26)]


@pytest.mark.parametrize(
    ("text", "line"),
    [("a\nb\n\n  \n", "b"), ("a\r\n c \r\n", "c"), ("only", "only"), (" \n", ""), ("", "")],
)
def test_last_line_skips_blank_lines(text, line):
    assert last_line(text) == line


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("\\boxed{" * (MEGA // 7), id="boxes"),
        pytest.param("\\boxed{1" + "{" * (MEGA // 4), id="open braces"),
        pytest.param("\\boxed{" + "{" * (MEGA // 8) + "}" * (MEGA // 8), id="nested braces"),
        pytest.param("}" * (MEGA // 4) + "\\boxed{", id="closing braces"),
        pytest.param("\\" * MEGA + "\\boxed", id="backslashes"),
        pytest.param("\\boxed" + " " * MEGA, id="spaces before the brace"),
        pytest.param("<answer>" * (MEGA // 8), id="tags"),
        pytest.param("</answer>" * (MEGA // 9), id="end tags"),
        pytest.param("9" * MEGA, id="digits"),
        pytest.param("\x00\x1b[31m\ud800" * (MEGA // 8), id="control characters"),
    ],
)
def test_megabytes_without_an_answer_have_none(text):
    assert final_answer(text) is None
    assert BoxedFormat().score([text], [problem("1")]) == [Verdict(0.0)]
    assert ExactAnswer().score([text], [problem("1")]) == [Verdict(0.0, parsed=False)]


def test_a_deeply_nested_box_is_found_without_recursion():
    depth = 100_000
    assert final_answer("\\boxed{" * depth + "5" + "}" * depth) == "5"


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("  Yes ", "yes"),
        ("Yes.", "yes"),
        ("light \n\t blue", "light blue"),
        ("$28$", "28"),
        ("$$ 9 $$", "9"),
        ("$5.$", "5"),
        ("$5$.", "5"),
        ("( 2 , 3 )", "(2,3)"),
        ("(2,3)", "(2,3)"),
        ("1, 2", "1,2"),
        ("f (x)", "f (x)"),
        ("STRASSE", "strasse"),
        ("straße", "strasse"),
        ("$5", "$5"),
        ("$", "$"),
        ("$$", ""),
        (".", ""),
        ("", ""),
        ("1..", "1."),
    ],
)
def test_normalise_applies_its_rules_and_no_more(answer, normal):
    assert normalise(answer) == normal


@pytest.mark.parametrize(
    ("text", "gold", "require_boxed", "verdict"),
    [
        (r"\boxed{ (2, 3) }", "( 2,3 ).", True, Verdict(1.0)),
        (r"\boxed{YES}", "yes", True, Verdict(1.0)),
        (r"\boxed{4}", "5", True, Verdict(0.0)),
        (r"\boxed{5.0}", "5", True, Verdict(0.0)),
        ("<answer>5</answer>", "5", True, Verdict(1.0)),
        (r"\boxed{ }", "5", True, Verdict(0.0, parsed=False)),
        ("think\n5", "5", True, Verdict(0.0, parsed=False)),
        ("think\n5.\n", "5", False, Verdict(1.0)),
        ("5\nno, 6", "5", False, Verdict(0.0)),
        (r"\boxed{6} but" + "\n5", "5", False, Verdict(0.0)),
        (" \n ", "5", False, Verdict(0.0, parsed=False)),
    ],
)
def test_exact_answer_compares_normal_forms(text, gold, require_boxed, verdict):
    assert ExactAnswer(require_boxed=require_boxed).score([text], [problem(gold)]) == [verdict]


@pytest.mark.parametrize("gold", ["", "  ", "$ $", "."])
def test_exact_answer_refuses_an_empty_gold_with_id_and_remedy(gold):
    with pytest.raises(ValueError, match=r"problem 'p1': the gold answer .* is empty: give the problem an answer"):
        ExactAnswer().check_gold(problem(gold))


def test_exact_answer_accepts_any_other_gold():
    assert ExactAnswer().gold_faults([problem(r"\frac{1}{")]) == [None]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"so \boxed{5}", 1.0),
        (r"so $\boxed{\frac{1}{2}}$.", 1.0),
        (r"so $\boxed{5}.$ ", 1.0),
        ("so $$\\boxed{5}$$\n", 1.0),
        ("\\[\n\\boxed{5}\n\\]", 1.0),
        (r"\(\boxed{5}\).", 1.0),
        (r"\boxed{5}..", 0.0),
        (r"\boxed{5} cm", 0.0),
        (r"\boxed{5}!", 0.0),
        (r"\boxed{}", 0.0),
        (r"\boxed{  }", 0.0),
        (r"\boxed{5", 0.0),
        (r"\boxed{4}\boxed{5}", 0.0),
        (r"\boxed{\boxed{5}}", 0.0),
        (r"\boxed{4 \boxed{5}", 0.0),
        ("<answer>5</answer>", 0.0),
        ("5", 0.0),
        ("", 0.0),
    ],
)
def test_format_wants_one_box_at_the_end(text, value):
    assert BoxedFormat().score([text], [problem("5")]) == [Verdict(value)]

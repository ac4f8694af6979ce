"""The official rules of the benchmarks, on small cases worked out by hand from their authors' code."""

from __future__ import annotations

import random
from string import ascii_letters, digits

import pytest

from atrl.benchmarks import dynamath, hallusionbench, logicvista, mathvision, mathvista, mmmu, mmmu_pro, mmstar, wemath
from atrl.benchmarks import latex_value as latex_value_module
from atrl.benchmarks.base import Item, option_list
from atrl.benchmarks.latex_value import NoValue, latex_value
from atrl.benchmarks.mathverse import MathVerse
from atrl.benchmarks.mmvet import MMVet, contained, read_score
from atrl.benchmarks.numbers import NoNumber, number_in
from atrl.benchmarks.reading import find_choice, letter_of
from atrl.benchmarks.vsibench import VsiBench, first_word, mean_relative_accuracy, score_number


def choose(extraction: str, choices: list[str], **options) -> str | None:
    return mathvista.normalise(extraction, question_type="multi_choice", answer_type="text", choices=choices, **options)


@pytest.mark.parametrize(
    ("extraction", "choices", "expected"),
    [
        ("B", ["2cm", "4cm"], "4cm"),  # a bare letter is the index
        ("(b) anything (A)", ["2cm", "4cm"], "4cm"),  # the first letter in parentheses, whatever its case
        ("b", ["x", "bb", "yyy"], "x"),  # a small letter is no index: distances 1, 1, 3, the first wins
        ("C", ["2cm", "4cm"], "2cm"),  # out of range: distance 3 and 3, the first wins
        ("(C)", ["cat", "dog"], "cat"),  # out of range too, "C" is compared: 3 and 3
        ("92.5", ["97", "102", "107"], "97"),  # distances 3 (9|7|..), 4, 4
        (" A ", ["yes", "no"], "yes"),
        ("", ["yes", "no"], "no"),  # an empty extraction gets the nearest, which is the shortest
    ],
)
def test_mathvista_choices(extraction, choices, expected):
    assert choose(extraction, choices) == expected


def test_mathvista_can_leave_an_empty_choice_unanswered():
    assert choose(" ", ["yes", "no"], ignore_empty=True) is None
    assert choose("x", ["yes", "x"], ignore_empty=True) == "x"


@pytest.mark.parametrize(
    ("extraction", "answer_type", "precision", "expected"),
    [
        ("3.9", "integer", None, "3"),  # cut, not rounded
        ("-2.0", "integer", None, "-2"),
        ("1e3", "integer", None, "1000"),
        ("three", "integer", None, None),
        ("inf", "integer", None, None),
        ("nan", "integer", None, None),
        ("٣", "integer", None, "3"),  # Python's float reads other scripts' digits, and so does the official rule
        ("1.25", "float", 1, "1.2"),  # round half to even
        ("1.2", "float", 2.0, "1.2"),  # Parquet makes the precision a float
        ("0.30", "float", 2, "0.3"),
        ("1.2", "float", None, None),
        ("[1, 2]", "list", None, "[1, 2]"),
        ("x", "text", None, None),
    ],
)
def test_mathvista_free_answers(extraction, answer_type, precision, expected):
    found = mathvista.normalise(extraction, question_type="free_form", answer_type=answer_type, precision=precision)
    assert found == expected


def test_mathvista_compares_letter_by_letter():
    rule, item = mathvista.MathVista(), Item("1", "Yes", {"question_type": "multi_choice", "choices": ["yes", "no"]})
    assert (rule.judge("yes", item).prediction, rule.judge("yes", item).score) == ("yes", 0.0)


def mathvista_item(**row) -> Item:
    return Item("1", row["answer"], {"question_type": "free_form", "answer_type": "integer", **row})


@pytest.mark.parametrize(
    ("response", "row", "prediction"),
    [
        ("7", {}, "7"),
        ("There are 3 cats and 4 dogs.\n\nSo the answer is 7.", {}, "7"),
        ("So the total is 1 + 2 = **3** apples.\nI hope this helps! Ask again.", {}, "3"),
        ("It costs $1,200 in all.", {}, "1200"),
        ("The answer is three.", {}, "3"),
        (r"Hence \boxed{12} and not 5.", {}, "12"),
        ("Sorry, I can't help with images of people yet.", {}, None),
        ("", {}, None),
        ("The answer is 0.57 m", {"answer_type": "float", "precision": 1}, "0.6"),
        ("It is [1, 2] then [3, 4].", {"answer_type": "list"}, "[3, 4]"),
        (r"\boxed{12\text{ cm}^2}", {}, "12"),  # a unit's exponent is no answer
        (r"\boxed{12~\mathrm{m/s}^{2}}", {}, "12"),
        ("The area is 12 cm², as 5 is not.", {}, "5"),  # a sentence's last number, as ever
        (r"\boxed{\frac{1}{2}}", {"answer_type": "float", "precision": 1}, "0.5"),
        (r"\boxed{\tfrac34}", {"answer_type": "float", "precision": 2}, "0.75"),
        (r"\boxed{\frac{1}{2}}", {}, "0"),  # int(0.5), as the official rule cuts
        (r"\boxed{1/2}", {}, "0"),
        (r"\boxed{\sqrt{2}}", {}, "1"),  # 1.41…
        (r"\boxed{5\sqrt{3}}", {}, "8"),  # 8.66…
        (r"\boxed{5√3}", {}, "8"),
        (r"\boxed{10-3}", {}, "7"),
        (r"\boxed{2\pi}", {"answer_type": "float", "precision": 2}, "6.28"),
        ("The answer is $3/4$ of 8.", {"answer_type": "float", "precision": 2}, "0.75"),
        ("From 2010-2011 it rose.", {}, "2011"),  # in a sentence a hyphen takes nothing away
        (r"\boxed{2x+3}, that is 3.", {}, None),
        (r"\boxed{\sqrt{x+2}}", {}, None),
        (r"\boxed{\frac{2}{x}}", {}, None),
        (r"\boxed{2m+3}", {}, None),  # m is no unit here
        (r"\boxed{(1,2)}", {}, None),
        (r"\boxed{2:30}", {}, None),
        (r"\boxed{9^{9^{9}}}", {}, None),
        ("The answer is x^2 + 5.", {}, None),
        (r"\boxed{x = 5}", {}, "5"),
        (r"\boxed{1{,}200}", {}, "1200"),
        (r"\boxed{45^\circ}", {}, "45"),
        (r"\boxed{2e3}", {}, "2000"),  # not 2 times Euler's number and 3
        (r"\boxed{1e-5}", {"answer_type": "float", "precision": 5}, "1e-05"),
    ],
)
def test_mathvista_answers_are_found_in_responses(response, row, prediction):
    rule, item = mathvista.MathVista(), mathvista_item(answer="7", **row)
    assert rule.judge(rule.extract(response, item), item).prediction == prediction


@pytest.mark.parametrize(
    ("response", "prediction"),
    [
        ("The correct answer is **(B) No**. Option (A) is wrong.", "No"),
        ("Yes", "Yes"),
        ("So the answer is no, there are more.", "No"),
        ("B", "No"),
        ("**Yes**, I think so.", "Yes"),
        ("The answer is (A).\n\nWait. So the answer is (B).", "No"),
        (r"Let A be the centre. So \boxed{\text{no}}.", "No"),
        ("By (A) we see it: **no**.", "No"),
    ],
)
def test_mathvista_choices_are_found_in_responses(response, prediction):
    rule = mathvista.MathVista()
    item = mathvista_item(answer="No", question_type="multi_choice", answer_type="text", choices=["Yes", "No"])
    scored = rule.judge(rule.extract(response, item), item)
    assert (scored.prediction, scored.score) == (prediction, float(prediction == "No"))


@pytest.mark.parametrize(
    ("response", "choices", "expected"),
    [
        ("The answer is a circle.", ["square", "circle"], "circle"),
        ("The answer is A circle.", ["square", "circle"], "circle"),
        ("A dog is in the picture.", ["cat", "dog"], "dog"),
        ("The correct choice is a tie between them; I pick C", ["x", "y", "z"], "(C)"),
        ("The answer is A because it fits.", ["x", "y"], "(A)"),  # no article stands before "because"
        ("The answer is b.", ["x", "y"], "(B)"),
        ("The answer is (a) circle", ["circle", "y"], "(A)"),
        ("The answer is a) circle", ["circle", "y"], "(A)"),
        (r"Let C be the centre. So it is \boxed{120}", ["60", "120", "240", "360"], "120"),
        (r"By (D) it is \boxed{\dfrac{10}{3}}", ["10", "3", r"\frac{20}{3}", r"\frac{10}{3}"], r"\frac{10}{3}"),
        (r"By (A) it is \boxed{2 - \sqrt{3}}", ["2", "√{3}"], "(A)"),  # a part of a formula is no option
        (r"\boxed{3.60}, by (B)", ["60", "3"], "(B)"),
        (r"\boxed{-60}", ["60", "-60"], "-60"),
        (r"\boxed{120^\circ}", ["60", "120"], "120"),
        ("The answer is 120 cm, not 60", ["60", "120"], "120"),  # the option that is announced, not the last one
        ("The answer is neither. (B) then", ["x", "y"], "(B)"),
    ],
)
def test_options_are_read_before_letters_that_stand_about(response, choices, expected):
    assert find_choice(response, choices) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("b", "B"), ("b.", "B"), ("(b) 5", "B"), ("b 5", None), ("a circle", None), ("A circle", None)),
        *(("I see", None), ("A", "A"), ("A 12", "A"), ("A. circle", "A"), ("B circle", "B"), ("A is right", "A")),
        ("option c", "C"),
    ],
)
def test_a_letter_is_no_article(text, expected):
    assert letter_of(text) == expected


@pytest.mark.parametrize("sign", ["1 ", "1m^", r"\frac{1}{", "x^", "* ", r"1\text{", "1+", "[1,", "A a ", "60/"])
def test_answers_are_read_in_steps_that_grow_with_their_length(sign):
    """What would take more than linear time here would take hours."""
    text = sign * (1_000_000 // len(sign))
    for marked in (False, True):
        try:
            number_in(text, marked=marked)
        except NoNumber:
            assert marked
    assert letter_of(text) in (None, "A")
    assert isinstance(find_choice(text, ["60", "a circle"]), str)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"The answer is $\boxed{60}$.", "60"),
        ("Choose one: (B).", "b"),  # ends with a letter in parentheses and a dot
        ("C\nbecause it is", "c"),
        ("(C)\nbecause it is", "c"),
        ("(C) C\nbecause it is", "c"),
        ("0.5", r"\frac{1}{2}"),  # the one decimal that becomes a fraction
        ("The answer is: 7.", "7"),
        ("The total is 12.", "12"),
        ("so the answer is 5. It is final", "5"),
        (r"\boxed{3} or rather \boxed{4}", "4"),
        (r"$\boxed{x = 90^\circ}$", "90"),
        (r"\boxed{1/2}", r"\frac{1}{2}"),
        (r"\boxed{\frac12\sqrt3}", r"\frac{1}{2}\sqrt{3}"),
        (r"\boxed{\frac1{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        ("", ""),
    ],
)
def test_mathvision_finds_answers_as_its_authors_do(response, expected):
    assert mathvision.find_answer(response) == expected


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("A", "a", True),
        ("60", " 60 ", True),
        ("0.5", r"\frac{1}{2}", True),
        ("0.333", r"\frac{1}{3}", True),  # both 0.33 when rounded to two places
        ("0.33", r"\frac{1}{3}", True),
        ("0.34", r"\frac{1}{3}", False),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        (r"\frac{1}{4}", r"\frac{1}{4}}.theansweris:\frac{1}{4", True),  # read up to the brace that opens nothing
        (r"$36^{\circ}$", "36", False),  # the official parser takes the degree sign for a symbol
        ("(2,3)", "(1+1,3.0)", False),  # "(2,3.0)" is another text than "(2,3)"
        ("(2,3)", "(1+1,3)", True),
        ("[2,3]", "[1+1,3]", True),
        ("x+1", "1+x", False),  # symbols have no value
        ("", "", False),
        ("5", " ", False),
        ("5", "__import__('os')", False),
        ("3", r"\infty", False),
    ],
)
def test_mathvision_equality(gold, answer, expected):
    assert mathvision.equal(gold, answer) is expected


def test_mathvision_takes_an_options_value_for_its_letter():
    rule = mathvision.MathVision()
    item = Item("1", "B", {"options": ["1", "2.5"]})
    assert [rule.judge(text, item).score for text in ("b", r"\frac{5}{2}", "a", "1", "")] == [1, 1, 0, 0, 0]
    assert rule.judge("", item).prediction is None


@pytest.mark.parametrize(
    "text",
    ["", "x", "9" * 1001, r"\circ", r"1\$", "i", r"\begin{pmatrix}1\end{pmatrix}", "|-3|", "9^{9^{9^{9}}}", "100000!"],
)
def test_what_has_no_number_as_its_value(text):
    with pytest.raises(NoValue):
        latex_value(text)


def test_numbers_and_letters_have_the_value_that_the_parser_gives_them(monkeypatch):
    """The way around the parser is no other rule: the same number to the bit, or the same refusal."""
    rng = random.Random(0)
    texts = [*ascii_letters, "007", "-0", ".5", "-.5", "1.", "-0.0", " 5 ", "1.005", "2.675", "9" * 15, "9" * 16]
    for _ in range(100):
        whole, below = ("".join(rng.choices(digits, k=rng.randint(1, 15))) for _ in range(2))
        texts.append(rng.choice(("", "-")) + whole + rng.choice(("", f".{below}")))
    short = [_value(text) for text in texts]
    monkeypatch.setattr(latex_value_module, "_is_plain", lambda text: False)
    assert short == [_value(text) for text in texts]
    assert short.count("none") == len(ascii_letters) - 2 + 1  # e and E have a value, "1." has none


def _value(text: str) -> str:
    try:
        return repr(latex_value(text))
    except NoValue:
        return "none"


def test_values_are_numbers():
    assert str(latex_value("2+3")) == "5"
    assert latex_value(r"e") == pytest.approx(2.718281828)
    assert latex_value(r"\frac{\pi}{2}") == pytest.approx(1.5707963)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<Thought process>: A <Answer>: B", "B"),
        ("Answer: <<C>>", "C"),
        ("Answer...: C", "C"),
        ("Answer A. No: Answer: D.", "D"),
        ("The Answer is B", None),  # what follows "Answer" begins with "is"
        ("E", "E"),  # without the word the whole response follows it
        ("I", None),
        ("", None),
    ],
)
def test_wemath_takes_the_first_letter_after_the_last_answer(response, expected):
    assert wemath.find_letter(response) == expected


@pytest.mark.parametrize(
    ("response", "gold", "score"),
    [
        ("B, D", "D, B", 1),
        ("b", "B", 1),
        ("B", "B, D", 0),
        ("The answer is A and B.", "a, b", 1),
        ("Answer: E.", "e", 1),
        ("The answer is (E), 125.6.", "e", 1),
        ("B) 14. BECAUSE:", "b", 1),
        ("3", "3", 1),
        ("G", "g", 0),  # the authors take one letter beyond E for no answer
        ("A pattern repeats, so C", "c", 1),
        ("none", "a", 0),
        ("", "", 1),  # one official gold is empty
    ],
)
def test_logicvista(response, gold, score):
    rule = logicvista.LogicVista()
    item = Item("v1_0", rule.gold({"answer": gold}), {"answer": gold})
    assert rule.judge(rule.extract(response, item), item).score == score


@pytest.mark.parametrize("recorded", ["['b', 'd']", ["d", "b"], "D, B", "['D', 'B']"])
def test_logicvista_reads_recorded_lists(recorded):
    rule = logicvista.LogicVista()
    scored = rule.judge(rule.recorded(recorded), Item("v1_0", "b, d", {}))
    assert (scored.score, scored.prediction) == (1, "b, d")
    assert rule.judge("['zzzzz']", Item("v1_0", "b", {})).prediction is None


@pytest.mark.parametrize(
    ("answer", "gold", "kind", "expected"),
    [
        ("2.001", "2", "float", True),
        ("2.0011", "2", "float", False),
        ("3 apples", "3", "float", True),  # its first word
        ("2π", "6.2832", "float", True),
        ("about 3", "3", "float", False),
        ("12", "12.0", "float", True),
        ("B", "B", "multiple choice", True),
        ("b", "B", "multiple choice", False),
        ("(B) 3", "B", "multiple choice", True),
        ("is B", "B", "multiple choice", False),
        ("the B", "B", "multiple choice", False),  # not among the first three characters
        ("it is even", "even", "text", True),  # the gold inside the answer
        ("even", "it is even", "text", False),
    ],
)
def test_dynamath(answer, gold, kind, expected):
    assert dynamath.right(answer, gold, kind) is expected


@pytest.mark.parametrize(
    ("response", "kind", "expected"),
    [
        ('{"solution": "x", "short answer": "2.500"}', "float", "2.500"),
        ('```json\n{"solution": "\\frac", "short answer": 4}\n```', "float", "4"),
        ('{"short answer": "first"} {"short answer": "la\\"st"}', "text", 'la"st'),
        ("The answer is 3.5 m.", "float", "3.5"),
        (r"\boxed{\frac{1}{2}}", "float", "0.5"),  # and so not 2.000
        (r"5 \sqrt{x}", "float", ""),  # the rule would take the first word
        ("I choose (C).", "multiple choice", "C"),
        (r"so \boxed{even}", "text", "even"),
    ],
)
def test_dynamath_short_answers(response, kind, expected):
    assert dynamath.find_short_answer(response, kind) == expected


OPTIONS = {"A": "red apple", "B": "green pear", "C": "plum"}


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("(B)", "B"),
        ("(A) is wrong, (B) is right, not (A)", "A"),  # the last occurrence counts
        ("B.", "B"),
        ("I take A or C then", "C"),
        ("plan AB then", None),  # no letter by itself
        ("A) red apple", None),  # neither in parentheses nor between spaces, and too short for texts
        ("I think that it must be the green PEAR", "B"),
        ("it is a green pear", None),  # five words
        ("it is a nice green pear", "B"),
        ("I do not know what this could be", None),
        ("(D)", None),
        ("", None),
    ],
)
def test_mmmu_choices(response, expected):
    assert mmmu.parse_choice(response, OPTIONS) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("... so on.\nAnswer: B", "B"),
        ("Answer: A or B", "B"),  # two letters after it: the last one between spaces
        ("A B. A", "A"),  # of "A " and "B " only A stands between spaces
        ("(C) or not. Answer: none", "C"),
        ("Surely C.", "C"),
        ("AB then", "B"),  # "B " needs nothing before it
        ("CA then AB then", "A"),  # but is placed by " B ", which is nowhere: the first
        ("C.\nthat one", "C"),
        ("Answer: C\nNot (A). Answer: B", "B"),  # what follows the last one
        ("no idea", None),
    ],
)
def test_mmmu_pro_choices(response, expected):
    assert mmmu_pro.parse_choice(response, OPTIONS) == expected


@pytest.mark.parametrize(
    ("golds", "response", "expected"),
    [
        (["24"], "so x = 24", True),
        (["24"], "It is 1,024", True),  # the official patterns find 1,024 and 024 in it
        (["1024"], "It is 1,024", True),
        (["25"], "It is 1,024", False),
        (["0.333"], "thus 0.33", True),  # both rounded to two places
        (["even"], "the result is even.", True),
        (["a"], "the answer is a b", True),  # a single letter needs a space at one side
        (["a"], "the answer is a.", True),  # the final full stop goes
        (["a"], "the answer is banana", False),
        (["red", "blue"], "it could be blue", True),
        (["5"], "I see 5 dogs\nx = 24", False),  # an equals sign makes the last sentence one
        (["hm"], "it is so \nhm", False),  # nothing follows "so ", so what follows "is " counts
        (["hm"], "the answer is ;\nhm", True),  # a mark is no answer, and without one the whole response counts
        (["5"], "I see 5 dogs\nthe answer is 6", False),  # only key sentences count where there are some
    ],
)
def test_mmmu_open_answers(golds, response, expected):
    assert mmmu.equal_open(golds, mmmu.parse_open(response)) is expected


def test_mmmu_counts_what_its_authors_would_have_guessed():
    rule = mmmu.MMMU()
    item = Item("validation_Math_1", "A", {"answer": "A", "question_type": "multiple-choice", "index2ans": OPTIONS})
    lost = rule.judge(rule.extract("no idea", item), item)
    assert (lost.score, lost.prediction, lost.extras) == (0.0, None, {"unguessed": 1.0})
    assert rule.judge(rule.extract("(A)", item), item).extras == {}
    free = Item("validation_Math_2", "5", {"answer": "5", "question_type": "open"})
    assert rule.judge(rule.extract("", free), free).extras == {"unguessed": 0.0}
    assert mmmu.subject_of("validation_Art_Theory_12") == "Art_Theory"


@pytest.mark.parametrize(
    ("response", "gold", "score"),
    [
        ("A", "A", 1),
        ("a. the red one", "A", 1),
        ("(B) the red one", "B", 1),
        ("Option C", "C", 1),
        ("The answer is D", "D", 1),
        ("The answer\nis D", "D", 1),
        ("Answer: D", "D", 0),
        ("The answer is (D)", "D", 0),
        ("An apple", "A", 1),  # the first character, as the official rule has it
        ("(", "A", 0),
        ("", "A", 0),
    ],
)
def test_mmstar(response, gold, score):
    rule, item = mmstar.MMStar(), Item("1", gold, {})
    assert rule.judge(rule.extract(response, item), item).score == score


@pytest.mark.parametrize(
    ("response", "expected"),
    [("Yes, it is.", "yes"), ("I say no. Yes would be odd", "no"), ("It is True", "yes"), ("Nothing", None)],
)
def test_hallusionbench_reads_yes_and_no(response, expected):
    assert hallusionbench.find_yes_or_no(response) == expected


def hallusion_item(category: str, figure: str, gold: str = "1") -> Item:
    rule = hallusionbench.HallusionBench()
    row = {"category": category, "subcategory": "s", "set_id": "0", "figure_id": figure, "question_id": "0"}
    return Item(rule.item_id(row), rule.gold({"answer": gold}), {**row, "answer": gold})


def test_hallusionbench_excuses_an_unclear_answer_only_without_a_figure():
    rule = hallusionbench.HallusionBench()
    cases = [("VS", "0", "maybe"), ("VS", "1", "maybe"), ("VD", "0", "maybe"), ("VS", "0", "no"), ("VD", "1", "yes")]
    scores = [rule.judge(answer, hallusion_item(category, figure)).score for category, figure, answer in cases]
    assert scores == [1, 0, 0, 0, 1]
    assert hallusion_item("VD", "1").id == "VD_s_0_1_0"


def test_vsibench_relative_accuracy_has_ten_thresholds_in_floats():
    assert mean_relative_accuracy(105, 100) == 1.0  # 0.05 <= 1 - 0.95 in floats
    assert mean_relative_accuracy(4, 5) == 0.6  # 0.2 > 1 - 0.8 in floats, so 0.50 … 0.75 hold
    assert mean_relative_accuracy(9, 10) == 0.9  # linspace's ninth is 0.8999…, so that 0.1 is within it
    assert mean_relative_accuracy(150, 100) == 0.1  # only 0.50
    assert mean_relative_accuracy(151, 100) == 0.0
    assert mean_relative_accuracy(100, 100) == 1.0


@pytest.mark.parametrize(("text", "target"), [("three", "3"), ("nan", "3"), ("inf", "3"), ("", "3"), ("3", "0")])
def test_vsibench_what_is_no_number_scores_nothing(text, target):
    assert score_number(text, target) == 0.0


def test_vsibench_reports_the_official_rule_and_a_tolerant_one():
    rule = VsiBench()
    number = Item("1", "4", {"question_type": "object_counting"})
    choice = Item("2", "B", {"question_type": "route_planning", "options": ["A. left", "B. right"]})
    assert first_word("4. chairs") == "4"
    assert first_word(" 4") == ""
    for response, item, official, tolerant in [
        ("4 chairs", number, 1.0, 1.0),
        ("about 4 chairs", number, 0.0, 1.0),
        ("4m", number, 0.0, 1.0),
        ("about 4 m^2", number, 0.0, 1.0),
        ("about 12 m^4", number, 0.0, 0.0),
        ("b", choice, 1.0, 1.0),
        ("B. right", choice, 1.0, 1.0),
        ("The answer is B", choice, 0.0, 1.0),
        ("A", choice, 0.0, 0.0),
    ]:
        scored = rule.judge(rule.extract(response, item), item)
        assert (scored.score, scored.extras["tolerant"]) == (official, tolerant), response
    assert rule.judge("", number).prediction is None


@pytest.mark.parametrize(
    ("response", "gold", "expected"),
    [
        ("x = -1 or x = -5", "-1<AND>-5", 1.0),
        ("x = -1", "-1<AND>-5", 0.5),
        ("a CAT", "dog<OR>cat", 1.0),
        ("a cow", "dog<OR>cat", 0.0),
    ],
)
def test_mmvet_elements(response, gold, expected):
    assert contained(response, gold) == expected
    assert MMVet().judge(response, Item("v1_0", gold, {})).score == expected


@pytest.mark.parametrize(("reply", "score"), [("0.5", 0.5), ("1.0 |", 1.0), ("1.5", None), ("good", None), ("", None)])
def test_mmvet_reads_a_judges_score(reply, score):
    assert read_score(reply) == score


@pytest.mark.parametrize(
    ("response", "kind", "gold", "score"),
    [
        ("The answer is B: 12", "multi-choice", "B", 1),
        ("C", "multi-choice", "B", 0),
        (r"so $\boxed{\frac{1}{2}}$", "free-form", "0.5", 1),
        ("The answer is 2√{3}.", "free-form", r"2\sqrt{3}", 1),
        ("The answer is 90°.", "free-form", "90", 1),
        ("The answer is 50 degrees.", "free-form", "50^{\\circ}", 1),
        (r"\boxed{50.0 degrees}", "free-form", "50", 1),
        ("The answer is 50 degrees Celsius.", "free-form", "50", 0),
        ("The answer is 40 degrees.", "free-form", "50^{\\circ}", 0),
        ("it is x", "free-form", "y", 0),
    ],
)
def test_mathverse_by_rules(response, kind, gold, score):
    rule, item = MathVerse(), Item("1", gold, {"question_type": kind})
    assert rule.judge(rule.extract(response, item), item).score == score


def test_options_are_read_from_text_without_running_it():
    assert option_list("['a', '1']") == ["a", "1"]
    assert option_list(["a", 1.0]) == ["a", "1"]
    with pytest.raises(ValueError, match="are no list"):
        option_list("[__import__('os').getcwd()]")
    with pytest.raises(ValueError, match="must be a list"):
        option_list(3)

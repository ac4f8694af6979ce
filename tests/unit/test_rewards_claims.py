"""Which answers commit themselves to one value, and which contradict themselves."""

from __future__ import annotations

import pytest

from atrl.rewards.claims import base, claim, commits, conclusion, contradicts, says, worded


@pytest.mark.parametrize(
    "sentence",
    [
        "the answer is not 5",
        "definitely not equal to 5",
        "any number except 5",
        "every number other than 5",
        "it is more than 5",
        "we can rule out 5",
        "it rules 5 out here",
        "5 was excluded at once",
        "it can't be 5",
        "it can’t be 5",
        "it cannot be 5",
        "neither four nor 5",
        "there is no 5 here",
        "$5$ is not the answer here",
        "5 is wrong here",
        "it is anything but 5",
        r"5 \text{ is not the right answer}",
        r"5 \mathrm{\ is\ wrong}",
        r"\text{not } x = 5",
        r"x = 5 \text{ (false)}",
        r"\lnot (x = 5)",
        "5不对",
    ],
)
def test_a_sentence_that_denies_commits_to_nothing(sentence):
    assert not commits(sentence, "$5$")
    assert not commits(sentence, "$(5, 6)$")


@pytest.mark.parametrize(
    "sentence",
    [
        "it could be 3 or 4 or 5",
        "it is $3$ or $5$",
        "it is either four or 5",
        "there are 5 or fewer of them",
        "it is certainly between 3 and 5",
        "it is between three and 5",
        "it goes from 0-5 here",
        "it goes from $0$–$5$ here",
        "it goes from -5 to 5",
        "we find x > 5 here",
        "we find $x \\geq 5$ here",
        "it lies in 3 ≤ x ≤ 5",
        r"5\text{ cm or }6\text{ cm}",
        r"5\text{ or another value}",
        "5以上",
        "3或5",
    ],
)
def test_a_sentence_that_leaves_several_values_open_commits_to_none_of_them(sentence):
    assert not commits(sentence, "$5$")


@pytest.mark.parametrize(
    "sentence",
    [
        "the numbers are 3, 4, 5",
        "first 3 and then 5",
        "x = 3 and x = 5 solve it",
        "we get x = 3. y = 5",
        "6 apples of 5 kinds",
        "the answer is 5 (6)",
        "f(1) = 2, f(2) = 4",
        "question 3: the answer is 5",
        "question 3: x = 5 holds",
        "it is 3 and it is 5",
        "it is one of 3 and is 5",
        "it could be 3, the answer is 5",
        r"5\text{ cm, }6\text{ cm}",
        "5 hundred",
        r"it is 5 \text{ million} in all",
        r"5\text{ if } n=2, 6\text{ otherwise}",
        "x=5 x=3",
        r"x=5 \\ x=3",
        r"x=5 \; x=3",
        "x=5 | x=3",
        r"a=5 \quad b=3",
        r"x=5 \lor x=3",
    ],
)
def test_numbers_of_several_formulas_are_several_values(sentence):
    assert not commits(sentence, "$5$")


@pytest.mark.parametrize(
    "sentence",
    [
        "the answer is 5",
        "x is equal to 5",
        "it is approximately 5 cm",
        "the difference between both is 5",
        "the range of the values is 5 miles",
        "the ratio, or slope, is 5",
        "there are 5 or so",
        "it costs $5 more than before",
        "there is no doubt that it is 5",
        "the answer is No. 5",
        "the 2nd term is 5",
        "the degree of <b>∠2</b> is **5°**",
        "the size of angle 2 is 5°",
        "we get x_1 = 5, which was asked for",
        "we take x_{12} to be 5",
        "it is about 1,234.5 in all",
        "the 5-inch mark, so it is 5 inches long",
        "the same is 5.0 as 5 (5)",
        "the velocity is -130 km/h",
        "so the point is (3, 2)",
        "we mix them 1:3:2 at last",
        "AB is 2 * (6 feet + 3 feet) = 2 * 9 feet = **18 feet**",
        "it costs $17-$12 = $5 more",
        "the angle ADE = 90° - ∠NMP = 90° - 55° = 35°",
        "it is sqrt(6^2 + 8^2) = sqrt(100) = 10 here",
        "we find that AB = 9-4",
        r"the factor is $\frac{15}{5} = 3$ here",
        "sqrt(25) equals 5, as asked",
        "nothing was said of it",
        "the sum of 2 and 3 is 5",
        "The difference between 8 and 3 equals 5.",
        "in 2010, the value was 5",
        "on day 3 there were 5 visitors",
        "the number of those lower than 8 is 5",
        r"the term is $\frac{3x}{2}$",
        r"the term is $\frac{12xy}{5}$",
        "the product is $3xy(2x+1)$",
        "in all there are $1{,}234$",
        r"the root is $\sqrt[3]{5}$",
        r"5\,x^2+3",
        r"3 \text{ cm} \times 4 \text{ cm} = 12 \text{ cm}^2",
        r"P = 2 \times 9 \text{ m} = 18 \text{ m}",
        "90-35",
    ],
)
def test_a_sentence_that_asserts_one_value_commits_to_it(sentence):
    assert commits(sentence, "$5$")


@pytest.mark.parametrize("gold", ["$(3,5)$", "$x=3,x=5$", r"$4\pm 1$", "$x=3 or x=5$", "$x>5$", r"$3 \\ 5$"])
def test_several_values_are_committed_to_where_the_gold_holds_several(gold):
    assert commits("it is 3 or 5", gold)
    assert not commits("it is 3 or 5", "$1,235$")
    assert not commits("it is 3 or 5", "$1{,}235$")


def test_a_difference_is_no_range_where_the_gold_has_a_letter():
    assert commits("the number is $6-5i$", "$6-5i$")
    assert not commits("it goes from 6-5 here", "$1$")


def test_an_unequal_sign_in_an_answer_is_no_denial():
    assert commits(r"$x \not= 5$", r"$x \ne 5$")


@pytest.mark.parametrize(
    "answer",
    [
        "6=5",
        "9=8=7=5",
        r"2\equiv 5",
        r"2\equiv5",
        "x=6=5",
        "6 = x = 5",
        "-5=5",
        "6.0=5",
        "(6=5)",
        r"\text{6} = 5",
        "6 cm = 5 cm",
        r"6 \text{ m/s} = 5 \text{ m/s}",
        "so it is 6=5 here",
        "we see 6 equals 5",
        "6≡5",
    ],
)
def test_plain_numbers_that_are_set_equal_but_differ_contradict_each_other(answer):
    assert contradicts(answer, "$5$")
    assert contradicts(answer, "$x=5$")
    assert not contradicts(answer, "$6=5$")


@pytest.mark.parametrize(
    "answer",
    [
        "x=5",
        "AB = 5",
        "f(3)=5",
        "f(x, 3) = 5",
        "2+3=5",
        "x + 3 = 5",
        "x +3 = 5",
        "10/2=5",
        "5.0=5",
        "1,000 = 1000",
        r"\sqrt{25}=5",
        r"\sqrt25=5",
        "|-5|=5",
        "5!=120",
        "2x=5",
        "x=5, y=6",
        r"17\equiv 5\pmod{6}",
        "6 : 3 = 2",
        "3 <= 5",
        "1/3=0.33",
        "5 m/s = 18 km/h",
        r"5.2\approx 5",
        "x_1 = 5",
        r"x_{\text{12}} = 5",
        "∠1 = 60°",
        r"\angle1=60",
        "angle 1=60",
        "the answer is 5",
        "the sum of 2 and 3 equals 5",
        "the root of 25 is equal to 5",
    ],
)
def test_other_equations_contradict_nothing(answer):
    assert not contradicts(answer, "$5$")


@pytest.mark.parametrize(
    ("answer", "subscript"),
    [
        ("12_{3}", "3"),
        ("12_3", "3"),
        ("$(12)_{10}$", "10"),
        (r"12_{\text{three}}", "three"),
        ("5_{10} = 12_{3}", "3"),
        ("12", None),
        ("x_{3}", None),
        ("2x_3", None),
        (r"\log_{2}", None),
    ],
)
def test_the_base_of_a_number(answer, subscript):
    assert base(answer) == subscript


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("A is 90, B is 50. Therefore, the answer is 40.", "Therefore, the answer is 40."),
        ("A is 90.\nHence C is 40", "Hence C is 40"),
        ("It is 3. It is 40.", "It is 3. It is 40."),
        ("It is 40. So the answer is (A).", "It is 40. So the answer is (A)."),
        ("the answer is 5", "the answer is 5"),
        ("The answer is 5 cm, because 3 < 4", "The answer is 5 cm"),
        ("It is 2. So it is 5 since 4 is even.", "So it is 5"),
        ("Because 3 < 4, it is 5", "Because 3 < 4, it is 5"),
        ("It is 5 because 3 < 4. It is 6.", "It is 5 because 3 < 4. It is 6."),
    ],
)
def test_a_last_sentence_that_concludes_speaks_for_all(text, last):
    assert conclusion(text) == last


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("The answer to part 3 is 5.", "5."),
        ("the answer for $3$ equals $5$", "$5$"),
        ("the answer in **3** days is 5", "5"),
        ("the polygon has 5 sides", "5 sides"),
        ("it is 5, as all of them have it", "5, as all of them have it"),
        ("The area is 50π.", r"50\pi ."),
        ("Its sides are: $\\sqrt{3}$ cm", r"$\sqrt{3}$ cm"),
        (r"\text{The area is } 50\pi", r"50\pi"),
        ("The value that is right is x+1", "x+1"),
        ("5 is the answer", "5 is the answer"),
        ("The answer is five", "The answer is five"),
        ("the answer to part 3", "the answer to part 3"),
        ("x = 5 holds here", "x = 5 holds here"),
    ],
)
def test_what_a_sentence_claims_stands_behind_its_last_verb_with_a_number_or_formula(sentence, said):
    assert claim(sentence).strip() == said


def test_a_verb_makes_a_sentence_and_words_are_no_formula():
    assert says("x is 5")
    assert not says("x = 5")
    assert worded("5 cm at most")
    assert worded("(B). 60")
    assert not worded(r"$\sin AB + \sqrt{3}.$")

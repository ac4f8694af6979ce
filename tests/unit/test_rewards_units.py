"""Units behind a number, in one form."""

from __future__ import annotations

import pytest

from atrl.rewards.units import has_variable, last_unit, split_unit


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("12 cm", "12", "cm^1"),
        ("12 centimeters", "12", "cm^1"),
        ("12 square centimeters", "12", "cm^2"),
        ("12 sq. cm", "12", "cm^2"),
        ("12 cubic feet", "12", "ft^3"),
        ("12 cm ^ {2}", "12", "cm^2"),
        ("5 m/s", "5", "m^1 s^-1"),
        ("5 m/s^2", "5", "m^1 s^-2"),
        ("5 m s^{-2}", "5", "m^1 s^-2"),
        ("5 meters per second squared", "5", "m^1 s^-2"),
        (r"5 N\cdot m", "5", "N^1 m^1"),
        ("60 mph", "60", "h^-1 mi^1"),
        ("60 miles per hour", "60", "h^-1 mi^1"),
        ("12 square units", "12", None),
        (r"2\sqrt{3} m", r"2\sqrt{3}", "m^1"),
        (r"50\pi Inches", r"50\pi", "in^1"),
        ("(3, 4) cm", "(3, 4)", "cm^1"),
        ("x = 5 kg", "x = 5", "kg^1"),
        ("5m", "5", "m^1"),
        ("5 s", "5", "s^1"),
        ("5 apples", "5", "apple"),
        ("5 people", "5", "people"),
    ],
)
def test_a_unit_or_noun_is_taken_off_a_number(text, number, unit):
    assert split_unit(text) == (number, unit)
    assert split_unit(text, letters=False) == (number, unit)


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("5s", "5", "s^1"),
        ("3 blue cubes", "3", "blue cube"),
        ("1 cube", "1", "cube"),
        ("7 years old", "7", "yr^1"),
    ],
)
def test_more_is_taken_off_where_letters_are_no_variables(text, number, unit):
    assert split_unit(text) == (text, None)
    assert split_unit(text, letters=False) == (number, unit)


@pytest.mark.parametrize(
    "text",
    [
        "5t",
        "5x",
        "2x cm",
        "5 cm or 6 cm",
        "5 feet 6 inches",
        "5 m/6",
        "5 hundred",
        "5 million people",
        "5 dozens",
        "5 sixths",
        "5 six apples",
        "5 north",
        "5 meters north",
        "5 upwards",
        "1 half",
        "11 cube",
        "-1 cube",
        "5 or",
        "5K",
        "cm",
        "",
    ],
)
def test_what_is_no_unit_stays(text):
    assert split_unit(text) == split_unit(text, letters=False) == (text, None)


@pytest.mark.parametrize(
    ("sentence", "unit"),
    [
        ("It is 12 cm long", "cm^1"),
        ("The speed is 60 km/h on average.", "h^-1 km^1"),
        ("2 m of 5 square meters", "m^2"),
        ("It is 5 in total", None),
        ("It is 12", None),
    ],
)
def test_the_last_unit_of_a_sentence(sentence, unit):
    assert last_unit(sentence) == unit


def test_letters_right_of_the_equals_sign_are_variables():
    assert has_variable("2x")
    assert has_variable("y = 2x")
    assert not has_variable("x = 2")
    assert not has_variable(r"2\sqrt{3}\pi")

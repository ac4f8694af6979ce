r"""What a number counts or measures: units, currencies and nouns behind it.

math-verify has a list of units that it drops, "t", "h", "s" and "less" among them: ``5t`` is 5 to it, and 5 kg is 5 g.
So it is asked to drop none. Here a unit is one of `_NAMES`, alone or as a power, product or quotient (``m/s^2``,
"square feet", "miles per hour"), or a noun in the plural. It is taken off a number, never off a formula with letters,
and kept in one form to be compared.
"""

from __future__ import annotations

import re
from collections import Counter

# The first name of a line is the form; names of three letters or more have any case, and an s.
_NAMES = """
mm millimeter millimetre
cm centimeter centimetre
dm decimeter decimetre
m meter metre
km kilometer kilometre
in inch inches
ft foot feet
yd yard
mi mile
L l liter litre
mL ml milliliter millilitre
mg milligram
g gram
kg kilogram
lb lbs pound
oz ounce
ton tonne
ms millisecond
s sec second
min minute
h hr hrs hour
day
week
month
yr year
N newton
J joule
kJ kilojoule
W watt
kW kilowatt
V volt
A amp ampere
ohm Ω
Hz hertz
Pa pascal
K kelvin
mol mole
rad radian
degree deg
degC Celsius
degF Fahrenheit
dollar USD
cent
euro EUR €
£ GBP
yuan RMB
yen ¥
mph
unit
"""
_LINES = [line.split() for line in _NAMES.strip().split("\n")]
_FORMS = {name if len(name) < 3 else name.casefold(): line[0] for line in _LINES for name in line}
_MILES_PER_HOUR = {"mi": 1, "h": -1}

_BY_LENGTH = sorted(_FORMS, key=len, reverse=True)
_LONG = "|".join(name for name in _BY_LENGTH if len(name) > 2)
_SHORT = "|".join(name for name in _BY_LENGTH if len(name) < 3 and name != "in")
_NAME = rf"(?:(?i:{_LONG})(?i:s?)|{_SHORT}|in(?! [a-z]))(?![A-Za-z])"
_JOIN = r"(?P<join>/|\\cdot|\\times|\*|\bper|(?<=[\w}])) ?"
_FACTOR = (
    rf"(?P<power>(?i:square|cubic|sq\.?|cu\.?) )?(?P<name>{_NAME})"
    r"(?: ?\^ ?\{? ?(?P<exponent>-?[1-9])\b ?\}?| (?P<raised>squared|cubed))?"
)
_PART = re.compile(rf" ?(?:{_JOIN})??{_FACTOR}", re.ASCII)  # a dotless i is no i to `_FORMS`
_UNNAMED = re.compile(r"\(\?P<\w+>")
_UNIT = _UNNAMED.sub("(?:", rf"{_FACTOR}(?: ?{_JOIN}{_FACTOR}){{0,3}}")
_LAST = re.compile(rf"(?<=[0-9)}}\]i]) *({_UNIT})$", re.ASCII)
_NAMED = re.compile(rf"(?<=[0-9)}}]) *({_UNIT})", re.ASCII)
_POWERS = {"square": 2, "sq": 2, "sq.": 2, "cubic": 3, "cu": 3, "cu.": 3, "squared": 2, "cubed": 3}

SCALE = r"(?:hundred|thousand|[mbtr]{1,2}illion|dozen)s?\b"
"""A word that multiplies the number before it."""
_NUMBER_WORD = (
    rf"{SCALE}|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen"
    r"|twenty|thirty|fou?rty|fifty|sixty|seventy|eighty|ninety"
)
_NO_NOUN = rf"(?:(?:{_NUMBER_WORD})s?|hal(?:f|ves)|thirds?|quarters?|\w+ths?|minus|plus|and|but|nor|not|or|perhaps)\b"
_PLURAL = rf"(?!{_NO_NOUN}|always\b|\w+wards\b)(?:[a-z]{{3,}}(?<!s)s|people|children|men|women)"
_ADJECTIVE = rf"(?:(?!{_NO_NOUN})[a-z]{{3,}} )?"
_NOUN = re.compile(rf"(?<=[0-9)}}\]]) +({_PLURAL})$", re.IGNORECASE)
_PHRASE = re.compile(
    rf"(?<=[0-9)}}\]]) +({_ADJECTIVE}{_PLURAL}|(?<=(?<![\w.,/^-])1 ){_ADJECTIVE}(?!{_NO_NOUN}|more|less)[a-z]{{3,}})$",
    re.IGNORECASE,
)
_AFTER = re.compile(r"(?<=[A-Za-z]) (?:old|long|wide|high|tall|deep|apart|each|(?:in )?total)$")


def split_unit(text: str, letters: bool = True) -> tuple[str, str | None]:
    """The number that `text` starts with, and its unit or noun; `text` and None where it is a formula or has none.

    Args:
        text: a formula of one line, the text in it without its marks.
        letters: whether letters may be variables. Then one that touches the number is one (``5t``, but not ``5m``), and
            a noun is one word: "5 more apples" says more than 5. Otherwise "1 red cube" and "7 years old" are read too.
    """
    text = text if letters else _AFTER.sub("", text)
    if found := _LAST.search(text):
        number, unit = text[: found.start()], found.group(1)
        variable = re.match("[a-ln-zA-Z](?![A-Za-z])" if letters else "K", text[found.start() :])  # 5K is 5000 to many
        if not variable and not has_variable(number):
            return number, _form(unit)
        return text, None
    noun = (_NOUN if letters else _PHRASE).search(text)
    if noun and not has_variable(text[: noun.start()]):
        return text[: noun.start()], noun.group(1).casefold().removesuffix("s")
    return text, None


def last_unit(sentence: str) -> str | None:
    """The unit behind the last number of `sentence` that has one of those with names."""
    found = _NAMED.findall(sentence)
    return _form(found[-1]) if found else None


def has_variable(latex: str) -> bool:
    """Whether there are letters right of the last equals sign, commands left out."""
    return bool(re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", latex.rpartition("=")[2])))


def _form(unit: str) -> str | None:
    """``m^1 s^-2`` of ``m/s^2``; None where it names no unit in particular."""
    exponents: Counter[str] = Counter()
    for part in _PART.finditer(unit):
        name = part["name"]
        form = _FORMS.get(name) or _FORMS.get(name.casefold()) or _FORMS[name.casefold().removesuffix("s")]
        exponent = int(part["exponent"] or _POWERS.get((part["raised"] or part["power"] or "").strip().casefold(), 1))
        sign = -1 if part["join"] in ("/", "per") else 1
        for base, times in (_MILES_PER_HOUR if form == "mph" else {form: 1}).items():
            exponents[base] += sign * times * exponent
    return None if "unit" in exponents else " ".join(f"{base}^{exponents[base]}" for base in sorted(exponents))

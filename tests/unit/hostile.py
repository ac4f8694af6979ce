"""Strings that a parser had better survive, made from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator

_SEEDS = (
    *(
        "9**9**9",
        "9^{9^{9^{9}}}",
        "__import__('os').system('true')",
        "().__class__.__bases__[0]",
        "eval('1')",
        "1e999999",
    ),
    *(
        r"\frac{1}{",
        r"\sqrt{\sqrt{",
        r"\boxed{",
        r"\left(\frac",
        r"\int_0^\infty x dx",
        r"\begin{pmatrix}1&2\end",
        "$$",
    ),
    *("\x00\x07\x1b[31m", "\ud800", "٣٫١٤", "１２３", "𝟛", "½", "∞", "−5", "NaN", "1_000", "0x1F", "١٢٣", "\u202e321"),
    *("(A)", "the answer is", "Answer:", "<answer>", "</answer>", "**B**", "is ", "oxed{", '"short answer":', "yes"),
    *("factorial(10**8)", r"100000!", r"\binom{10^9}{5}", "(" * 50, "{" * 50, "[" * 50, "}" * 50, "=" * 20, ", " * 20),
    *(r"\lim_{x\to0}", r"\sum_{n=1}^{\infty}", "1/0", "0^0", "e^{e^{e^9}}", "%s%n", "${jndi:x}", "\n\n\n", "\t", "🙂"),
)


def hostile_strings(count: int, seed: int = 0) -> Iterator[str]:
    """`count` strings: pieces, pieces repeated and joined, now and then a long one."""
    rng = random.Random(seed)
    yield from _SEEDS[:count]
    for number in range(len(_SEEDS), count):
        pieces = [rng.choice(_SEEDS) * rng.choice((1, 1, 1, 2, 5)) for _ in range(rng.randint(1, 6))]
        text = rng.choice(("", " ", "\n", "+", "^", "{")).join(pieces)
        if number % 500 == 0:
            text *= 2000
        yield rng.choice((text, f"\\boxed{{{text}}}", f"The answer is {text}.", f"<answer>{text}</answer>"))


GIANTS = ("9" * 3_000_000, "(" * 200_000 + "1" + ")" * 200_000, "\\frac{" * 50_000, "A, " * 500_000, "1,234" * 300_000)
"""Megabytes, each once."""

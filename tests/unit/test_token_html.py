"""Responses as HTML for other pages: bounded, escaped, lookalikes together."""

from __future__ import annotations

import re
from html import unescape

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atrl.report.token_html import MAX_TOKEN, token_html


def spans(html: str) -> list[tuple[str, str]]:
    return re.findall(r'<span style="([^"]*)">([^<]*)</span>', html)


def test_neighbours_that_look_alike_share_a_span() -> None:
    found = spans(token_html(["a", "b", "c", "d"], [0.5, 0.5, 2.0, 2.0], [False, False, True, False], most=9))
    assert [text for _, text in found] == ["ab", "c", "d"]
    assert [("underline" in style) for style, _ in found] == [False, True, False]
    # Weight 0.5 is half of the tint of 1, which is 0.16; weight 2 is the top of the scale.
    assert [re.search(r"/([\d.]+)\)", style)[1] for style, _ in found] == ["0.08", "1", "1"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(max_size=250), max_size=4), st.integers(1, 4))
def test_nothing_that_a_model_writes_becomes_markup(tokens: list[str], most: int) -> None:
    html = token_html(tokens, [1.0] * len(tokens), None, most=most)
    assert len(html) < 600 + 6 * MAX_TOKEN * most
    inside = "".join(text for _, text in spans(html))
    assert "<" not in inside and ">" not in inside
    assert len(unescape(inside)) == sum(min(len(token), MAX_TOKEN) for token in tokens[:most])

"""Matplotlib's SVG made fit to stand inside a page: no metadata, no global styles, colours that follow the theme."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Matplotlib only takes real colours. These occur nowhere else, and become CSS variables afterwards.
INK, MUTED, GRID, PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
SERIES = tuple(f"#0c0d{i:02x}" for i in range(1, 9))
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--card"} | {
    colour: f"--s{i}" for i, colour in enumerate(SERIES, 1)
}

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_FONT_FAMILY = re.compile(r"font-family:[^;]*;?\s*|(?<=font:)[^;]*?(?=\d[\d.]*px)")


def inline_svg(figure: Figure, *, prefix: str, label: str) -> str:
    """A figure as an ``<svg>`` element that scales with its container.

    Args:
        figure: drawn in this module's colours.
        prefix: makes the element's ids unique in the page.
        label: what the picture shows, for those who don't see it.
    """
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "atrl"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(stream.getvalue())
    _remove(root, "metadata")
    _remove(root, "style")
    _prefix_ids(root, prefix)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": label}
    ElementTree.register_namespace("", _SVG.strip("{}"))
    ElementTree.register_namespace("xlink", _XLINK.strip("{}"))
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def _remove(root: ElementTree.Element, tag: str) -> None:
    for parent in root.iter():
        for child in parent.findall(_SVG + tag):
            parent.remove(child)


def _prefix_ids(root: ElementTree.Element, prefix: str) -> None:
    """Give the ids that are referred to a prefix, and drop the others: every figure numbers its parts from 1."""
    used = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == _XLINK + "href":
                used.add(value.removeprefix("#"))
                element.set(name, f"#{prefix}-{value.removeprefix('#')}")
            elif value.startswith("url(#"):
                used.add(value[5:-1])
                element.set(name, f"url(#{prefix}-{value[5:-1]})")
            elif name == "style":
                element.set(name, _FONT_FAMILY.sub("", value))
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in used:
            element.set("id", f"{prefix}-{own}")

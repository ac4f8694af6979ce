"""Text that can be shown, whatever a model or a data set wrote."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_SURROGATES = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """Text that can be written as UTF-8 and seen: control characters as their pictures, stray surrogates as U+FFFD.

    This does not escape for HTML; the template does.
    """
    return _SURROGATES.sub("\ufffd", text).translate(_CONTROLS)


def breakable(text: str) -> Markup:
    """`text` escaped for HTML, in whose names a line may end after an underscore, so that none ends within a word."""
    from markupsafe import Markup, escape

    return Markup(str(escape(text)).replace("_", "_<wbr>"))

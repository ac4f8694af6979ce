"""What a check says of what it is given."""

from __future__ import annotations

from collections.abc import Callable


def refusal(check: Callable[..., object], *arguments, **options) -> str | None:
    """The one line of the ValueError that `check` raises, or None where it lets its arguments through."""
    try:
        check(*arguments, **options)
    except ValueError as error:
        assert "\n" not in str(error), error
        return str(error)
    return None

"""What a check says, and running checks that may themselves fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: a thing, how it is, and what to do unless it is well."""

    thing: str
    state: State
    says: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert (self.state == "ok") == (not self.remedy), f"{self.thing}: what is {self.state} has a remedy, or none"


def ok(thing: str, says: str) -> Finding:
    """Nothing is to be done."""
    return Finding(thing, "ok", says)


def note(thing: str, says: str, remedy: str) -> Finding:
    """It works, and one may want it otherwise."""
    return Finding(thing, "note", says, remedy)


def problem(thing: str, says: str, remedy: str) -> Finding:
    """It stands in the way of runs."""
    return Finding(thing, "problem", says, remedy)


Check = Callable[[], Finding | Iterable[Finding]]


def examine(checks: Iterable[tuple[str, Check]]) -> Iterator[Finding]:
    """The findings of each check, as they come; a check that raises is a problem of its own."""
    for thing, check in checks:
        try:
            found = check()
            yield from [found] if isinstance(found, Finding) else found
        except (Exception, SystemExit) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            yield problem(thing, f"could not be looked at: {reason}", "repair what it names, or run `make setup` again")

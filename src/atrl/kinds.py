"""Whether what a component's ``_target_`` names can do what its place in the config asks of it.

A class of the annotated kind, or derived from it, can; any other must have that kind's methods and take their
arguments, whatever it derives from.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from atrl.annotations import is_component_class


def kinds_of(annotation: Any) -> tuple[type, ...] | None:
    """The classes that a component may be where `annotation` stands; None where any will do or it can't be judged."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kinds_of(arguments[0])
    if origin in (Union, UnionType):
        alternatives = [kinds_of(argument) for argument in arguments if argument is not type(None)]
        if any(kinds is None for kinds in alternatives):
            return None
        return tuple(kind for kinds in alternatives if kinds for kind in kinds)
    return (annotation,) if is_component_class(annotation) else None


def items_of(annotation: Any) -> Any:
    """The annotation of a list's items or a mapping's values; ``Any`` where there is none, or one for each place."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        items = [items_of(argument) for argument in arguments]
        return next((item for item in items if item is not Any), Any)
    if origin is tuple:
        return arguments[0] if arguments[-1:] == (Ellipsis,) else Any
    return arguments[-1] if arguments else Any


def misfit(factory: type, kinds: tuple[type, ...]) -> str | None:
    """Why a `factory` is none of `kinds`, to be read after its name; None where it can do what one of them can."""
    reasons = [_lack(factory, kind) for kind in kinds]
    if None in reasons or not reasons:
        return None
    *names, last = (kind.__name__ for kind in kinds)
    return f"is no {', '.join(names)}{' or ' if names else ''}{last}: {reasons[0]}"


def _lack(factory: type, kind: type) -> str | None:
    if kind in factory.__mro__:
        return None
    methods = dict(_methods(kind))
    if not methods:
        return "it does not derive from it"
    for name, method in methods.items():
        own = getattr(factory, name, None)
        if own is None:
            return f"it has no {name}"
        if not _takes(own, method):
            return f"its {name} does not take {_arguments(method)}"
    return None


def _methods(kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """What `kind` can be asked to do: its own and inherited public methods, and a call."""
    for name, member in inspect.getmembers(kind, inspect.isfunction):
        if name == "__call__" or not name.startswith("_"):
            yield name, member


def _takes(own: Any, method: Callable[..., Any]) -> bool:
    """Whether `own` can be called with what `method` can't be called without."""
    try:
        signature = inspect.signature(own)
    except (TypeError, ValueError):  # a property, say, or written in C
        return callable(own)
    needed = [parameter for parameter in _parameters(method) if parameter.default is parameter.empty]
    by_name = {parameter.name: None for parameter in needed if parameter.kind is parameter.KEYWORD_ONLY}
    try:
        signature.bind(*[None] * (len(needed) - len(by_name)), **by_name)
    except TypeError:
        return False
    return True


def _parameters(method: Callable[..., Any]) -> list[inspect.Parameter]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [parameter for parameter in inspect.signature(method).parameters.values() if parameter.kind not in variadic]


def _arguments(method: Callable[..., Any]) -> str:
    names = [parameter.name for parameter in _parameters(method) if parameter.default is parameter.empty]
    return f"({', '.join(names[1:])})"

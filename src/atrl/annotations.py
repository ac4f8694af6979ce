"""Type annotations of constructors, for config values: what fits, how to say it, which words there are.

Values come from YAML, so they are judged by pydantic's strict JSON rules: ``1`` is a fine float and a list a
fine tuple, but ``"1"``, ``1.0`` and ``true`` are no integers. Ranges are the business of the constructors.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import json
import os
import reprlib
import sys
import typing
from pathlib import PurePath
from types import GenericAlias, NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from omegaconf import Container
from pydantic import AfterValidator, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "text", NoneType: "null"}
LISTS = (list, tuple, set, frozenset)
ABSTRACT_LISTS = (
    collections.abc.Sequence,
    collections.abc.MutableSequence,
    collections.abc.Iterable,
    collections.abc.Collection,
    collections.abc.Set,
)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


class _Unknown:
    """Stands for a name that exists for type checkers only; what it annotates can't be judged."""

    def __class_getitem__(cls, item: object) -> type[_Unknown]:
        return cls


def _must_be_component(value: Any) -> Any:
    if not (isinstance(value, dict) and "_target_" in value):
        raise ValueError("not a component")
    return value


Component = Annotated[Any, AfterValidator(_must_be_component)]
"""What an annotation with a class of our own asks of a config: a node with a ``_target_``."""


def annotations_of(factory: Any) -> dict[str, Any]:
    """The annotation of each parameter of `factory`; ``Any`` where there is none or it can't be evaluated."""
    parameters = inspect.signature(factory).parameters
    return {name: _evaluated(parameter.annotation, factory, name) for name, parameter in parameters.items()}


def _evaluated(annotation: Any, factory: Any, name: str) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    holder = SimpleNamespace(__annotations__={name: annotation})
    stand_ins: dict[str, Any] = {}
    while True:
        try:
            return typing.get_type_hints(holder, _namespace(factory, name), stand_ins)[name]
        except NameError as error:
            if error.name in stand_ins:
                return Any
            stand_ins[error.name] = _Unknown
        except (TypeError, AttributeError, SyntaxError, ValueError):
            return Any


def _namespace(factory: Any, name: str) -> dict[str, Any]:
    """The globals of the module that wrote the annotation of parameter `name`."""
    if inspect.isclass(factory) and dataclasses.is_dataclass(factory):
        for owner in inspect.getmro(factory):
            if name in vars(owner).get("__annotations__", {}):
                return vars(sys.modules[owner.__module__])
    function = factory.__init__ if inspect.isclass(factory) else factory
    return getattr(inspect.unwrap(function), "__globals__", {})


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain config value (scalars, lists, dicts) is what `annotation` asks for."""
    try:
        adapter = TypeAdapter(_judgeable(annotation))
    except PydanticUserError:
        return True
    try:
        adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError:
        return False
    return True


def _judgeable(annotation: Any) -> Any:
    """`annotation` in terms that pydantic can judge: our own classes become `Component`, the rest ``Any``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _judgeable(arguments[0])
    if origin in (Union, UnionType):
        return Union[tuple(_judgeable(argument) for argument in arguments)]  # noqa: UP007
    if origin is Literal:
        return annotation
    if origin is tuple:
        return GenericAlias(tuple, tuple(item if item is Ellipsis else _judgeable(item) for item in arguments))
    container = origin or annotation
    if container in LISTS:
        return container[_judgeable(arguments[0])] if arguments else container
    if container in ABSTRACT_LISTS:
        return GenericAlias(list, (_judgeable(arguments[0]),)) if arguments else list
    if container in MAPPINGS:
        return GenericAlias(dict, tuple(_judgeable(argument) for argument in arguments)) if arguments else dict
    if not inspect.isclass(annotation) or annotation in (Any, object, _Unknown):
        return Any
    return _judgeable_class(annotation)


def is_component_class(annotation: Any) -> bool:
    """Whether `annotation` is a class whose instances a config describes by a node with a ``_target_``."""
    return inspect.isclass(annotation) and get_origin(annotation) is None and _judgeable(annotation) is Component


def _judgeable_class(annotation: type) -> Any:
    if annotation in SCALARS or issubclass(annotation, enum.Enum | PurePath | os.PathLike):
        return annotation
    if typing.is_typeddict(annotation):
        return dict
    if annotation is collections.abc.Callable or issubclass(annotation, Container | str | int | float | type):
        return Any
    return Component


def describe(annotation: Any) -> str:
    """`annotation` in the words of a config's author, such as ``"an integer or null"``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is Literal:
        return _one_of(arguments)
    if inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        return _one_of([member.value for member in annotation])
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} ({', '.join(describe(argument) for argument in arguments)})"
    container = origin or annotation
    if container in (*LISTS, *ABSTRACT_LISTS):
        return f"a list, each item {describe(arguments[0])}" if arguments else "a list"
    if container in MAPPINGS:
        return f"a mapping, each value {describe(arguments[1])}" if arguments else "a mapping"
    return _describe_class(annotation)


def _describe_class(annotation: Any) -> str:
    if annotation in SCALARS:
        return SCALARS[annotation]
    judged = _judgeable(annotation)
    if judged is Component:
        return f"a component ({annotation.__name__}: a node with a _target_)"
    if judged is Any or isinstance(annotation, TypeVar):
        return "anything"
    return "a path" if issubclass(judged, PurePath | os.PathLike) else "a mapping"


def _one_of(values: collections.abc.Sequence[Any]) -> str:
    shown = [show(value) for value in values]
    return f"one of {', '.join(shown)}" if len(shown) > 1 else shown[0]


def choices(annotation: Any) -> list[str]:
    """Every word that `annotation` allows, in it or in what it contains."""
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if isinstance(value, str)]
    if inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        return [str(member.value) for member in annotation]
    return [word for argument in get_args(annotation) for word in choices(argument)]


def show(value: Any) -> str:
    """A config value on one line, as YAML would spell it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict) and "_target_" in value:
        return f"a {value['_target_']}"
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)

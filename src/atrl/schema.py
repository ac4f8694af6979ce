"""Checks the nodes of a composed config against the constructors that they name, and builds nothing.

A node with a ``_target_`` is a component: its other keys must be parameters of the target, with values that
fit their annotations. Each function appends one line for each problem to `problems`; `config.py` raises them.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import shlex
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from atrl.annotations import annotations_of, choices, describe, fits, show
from atrl.kinds import items_of, kinds_of, misfit
from atrl.suggest import did_you_mean, did_you_mean_or_all

UNSET = object()
"""Stands for a value that is ``???`` or can't be resolved, which `to_plain` has reported."""

TARGET = "_target_"
HYDRA_KEYS = ("_target_", "_convert_", "_recursive_", "_partial_", "_args_")


def to_plain(config: DictConfig | ListConfig, problems: list[str], path: str = "", skip: Collection[str] = ()) -> Any:
    """The config as dicts and lists, interpolations resolved; what can't be resolved becomes `UNSET`.

    Keys in `skip` are left out, at this level only.
    """
    if isinstance(config, DictConfig):
        return {key: _resolved(config, key, problems, join(path, key)) for key in config if key not in skip}
    return [_resolved(config, index, problems, join(path, index)) for index in range(len(config))]


def _resolved(parent: Any, key: Any, problems: list[str], path: str) -> Any:
    if OmegaConf.is_missing(parent, key):
        problems.append(f"{path} is not set: add {path}=VALUE to the command line")
        return UNSET
    try:
        value = parent[key]
    except InterpolationToMissingValueError:
        return UNSET  # what it refers to is reported where it stands
    except OmegaConfBaseException as error:
        problems.append(f"{path} can't be resolved: {str(error).splitlines()[0]}")
        return UNSET
    if isinstance(value, float) and not math.isfinite(value):
        problems.append(f"{path} must be a finite number, got {value}")  # to most checks of a range nan is within
        return UNSET
    return to_plain(value, problems, path) if isinstance(value, DictConfig | ListConfig) else value


def join(path: str, key: object) -> str:
    """The dotted key of `key` in the node at `path`; the root's path is empty."""
    return f"{path}.{key}" if path else str(key)


def check_group(node: Any, path: str, problems: list[str], kinds: tuple[str, ...] = ()) -> None:
    """Checks a Hydra group that holds a component, or named or listed components, or nothing.

    `kinds` are the dotted names of the classes that they may be; any will do if there are none.
    """
    if isinstance(node, dict) and TARGET in node:
        before = len(problems)
        check_component(node, path, problems)
        if len(problems) == before and kinds and node[TARGET] not in (UNSET, *kinds):
            _check_fit(node, lambda: tuple(cast("type", locate(kind)) for kind in kinds), path, problems)
    elif isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            check_group(value, join(path, key), problems, kinds)
    elif node is not None and node is not UNSET:
        problems.append(f"{path} is {show(node)}, which nothing reads: a component is a node with a {TARGET}, or null")


def check_component(node: dict[str, Any], path: str, problems: list[str]) -> None:
    """Checks one node with a ``_target_``, and the components among its values."""
    arguments = {key: value for key, value in node.items() if key not in HYDRA_KEYS}
    if node[TARGET] is UNSET:
        return _check_nested(arguments, path, problems)
    try:
        factory = locate(node[TARGET])
    except ValueError as error:
        problems.append(f"{join(path, TARGET)}: {error}")
        return _check_nested(arguments, path, problems)
    if missing := sorted(getattr(factory, "__abstractmethods__", ())):
        problems.append(f"{join(path, TARGET)}: {node[TARGET]} can't be made: it has no {' and no '.join(missing)}")
    complete = node.get("_partial_") is not True and "_args_" not in node
    check_call(factory, node[TARGET], arguments, path, problems, complete=complete)
    return None


def check_call(
    factory: Callable[..., Any],
    name: str,
    arguments: dict[str, Any],
    path: str,
    problems: list[str],
    *,
    complete: bool = True,
) -> None:
    """Checks the arguments of a call of `factory`, called `name` in messages.

    `complete` says that the call will get no others, so that those without a default must be there.
    """
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # some functions written in C have no signature
        return _check_nested(arguments, path, problems)
    named = {
        key: parameter
        for key, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    annotations = annotations_of(factory)
    for key, value in arguments.items():
        if key in named:
            _check_value(value, annotations[key], join(path, key), problems)
        elif not open_ended:
            problems.append(f"{join(path, key)} is not an option of {name}{did_you_mean_or_all(key, named)}")
    _check_nested(arguments, path, problems)
    if complete:
        for key, parameter in named.items():
            if parameter.default is parameter.empty and key not in arguments:
                where = join(path, key)
                problems.append(f"{where} is missing and has no default: add +{where}=VALUE, or it to the YAML")
    return None


def _check_value(value: Any, annotation: Any, path: str, problems: list[str]) -> None:
    if _holds_unset(value):
        return
    if fits(value, annotation):
        return _check_kind(value, annotation, path, problems)
    known = choices(annotation)
    wrong = [text for text in _strings(value) if text not in known]
    hint = did_you_mean(wrong[0], known) if wrong else ""
    problems.append(f"{path} must be {describe(annotation)}, got {show(value)}{hint}")
    return None


def _check_kind(value: Any, annotation: Any, path: str, problems: list[str]) -> None:
    """Checks that the components in `value` can do what `annotation` promises."""
    if isinstance(value, dict) and TARGET in value:
        kinds = kinds_of(annotation)
        if kinds:
            _check_fit(value, lambda: kinds, path, problems)
    elif isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            _check_kind(child, items_of(annotation), join(path, key), problems)


def _check_fit(node: dict[str, Any], kinds: Callable[[], tuple[type, ...]], path: str, problems: list[str]) -> None:
    """Of a function, or of a class that is not there, nothing is said; nor of a partial component, which is none yet.

    `kinds` are asked for last: they may take seconds to import.
    """
    try:
        factory = locate(node[TARGET])
    except ValueError:  # is reported where it stands
        return
    reason = misfit(factory, kinds()) if inspect.isclass(factory) and node.get("_partial_") is not True else None
    if reason is not None:
        problems.append(f"{join(path, TARGET)}: {node[TARGET]} {reason}")


def _check_nested(value: Any, path: str, problems: list[str]) -> None:
    if isinstance(value, dict) and TARGET in value:
        check_component(value, path, problems)
    elif isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            _check_nested(child, join(path, key), problems)


def _holds_unset(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(_holds_unset(child) for child in (value.values() if isinstance(value, dict) else value))
    return value is UNSET


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        children = value.values() if isinstance(value, dict) else value
        return [text for child in children for text in _strings(child)]
    return [value] if isinstance(value, str) else []


def locate(target: Any) -> Callable[..., Any]:
    """The class or function with the dotted name `target`, found the way Hydra finds it.

    Raises ``ValueError`` with one line where there is none, it can't be imported or it can't be called.
    """
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise ValueError(f"{show(target)} is no dotted name of a class or function")
    first, *rest = target.split(".")
    found: Any = _import(first)
    for depth, part in enumerate(rest, start=1):
        prefix = ".".join([first, *rest[: depth - 1]])
        if hasattr(found, part):
            found = getattr(found, part)
        elif isinstance(found, ModuleType) and part in _submodules(found):
            found = _import(f"{prefix}.{part}")
        else:
            known = [name for name in dir(found) if not name.startswith("_")] + _submodules(found)
            raise ValueError(f"there is no {part!r} in {prefix}{did_you_mean(part, known)}")
    if not callable(found):
        raise ValueError(f"{target} is a {type(found).__name__}, not a class or function")
    return found


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise ValueError(f"{name} needs the package {error.name!r}, which is not installed") from None
        raise ValueError(_no_module(name)) from None
    except ImportError as error:
        raise ValueError(f"{name} can't be imported: {error}".replace("\n", " ")) from None
    except Exception as error:
        if name.partition(".")[0] == "atrl":  # a bug of ours, whose traceback is wanted
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{name} can't be imported: {reason}") from None


def _no_module(name: str) -> str:
    """What to do where the top-level module `name` is not there."""
    for folder in _own_folders():
        if (folder / f"{name}.py").is_file() or any((folder / name).glob("*.py")):
            export = f"export PYTHONPATH={shlex.quote(str(folder))}:$PYTHONPATH"
            return f"there is no module {name!r}, put its folder on PYTHONPATH: {export}"
    known = [module.name for module in pkgutil.iter_modules() if not module.name.startswith("_")]
    near = did_you_mean(name, ["atrl"]) or did_you_mean(name, set(known) - sys.stdlib_module_names)
    return f"there is no module {name!r} in installed packages or on PYTHONPATH{near}"


def _own_folders() -> Iterator[Path]:
    """Where a user's code may lie: the current folder, and those of configs with what is above them."""
    yield Path.cwd()
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    for folder in [Path(source.path) for source in sources if source.schema == "file"]:
        yield from (folder, folder.parent)


def _submodules(module: Any) -> list[str]:
    return [found.name for found in pkgutil.iter_modules(getattr(module, "__path__", []))]

"""Whose code a file is: atrl's, Python's, or that of a component of the user's own."""

from __future__ import annotations

import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from atrl import plugins
from atrl.schema import TARGET, join

OUR_FOLDER = Path(__file__).resolve().parent
STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"]).resolve()
INSTALLED = {"site-packages", "dist-packages"}


def is_ours(file: Path, task_file: Path) -> bool:
    """Whether `file` is part of atrl, of a plug-in, or the program itself."""
    file = file.resolve()
    return file.is_relative_to(OUR_FOLDER) or file == task_file.resolve() or plugins.is_plugged_in(file)


def is_standard_library(file: Path) -> bool:
    """Whether `file` came with Python."""
    if str(file).startswith("<frozen "):
        return True
    return file.resolve().is_relative_to(STANDARD_LIBRARY) and not INSTALLED.intersection(file.parts)


@dataclass(frozen=True, slots=True)
class OwnComponent:
    """A component of a config whose class or function is in no installed package.

    Attributes:
        title: ``"credit=surprise"`` where it is an option of a group, else its dotted key.
        files: of its class and of those of the user's that it derives from.
        classes: their names; a function's own.
    """

    title: str
    files: frozenset[Path]
    classes: frozenset[str]


def own_components(config: DictConfig, choices: Mapping[str, Any], task_file: Path) -> list[OwnComponent]:
    """Those of `config` whose modules were imported; others have raised nothing.

    Args:
        config: as Hydra composed it.
        choices: the option that was taken of each config group.
        task_file: the program.
    """
    found = []
    for path, target in targets(OmegaConf.to_container(config, resolve=False)):
        option = choices.get(path.replace(".", "/"))
        title = f"{path}={option}" if isinstance(option, str) else path
        kinds = {kind: file for kind, file in _files(target) if not _is_brought(file, task_file)}
        if kinds:
            names = frozenset(getattr(kind, "__name__", "") for kind in kinds)
            found.append(OwnComponent(title, frozenset(kinds.values()), names))
    return found


def blame(error: BaseException, own: Sequence[OwnComponent]) -> str | None:
    """A line on the component of the user's own that was last at work when `error` was raised, and where.

    None where there was none. Of several in one file it is the one whose class the method is of, or else all.
    """
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = Path(frame.f_code.co_filename).resolve()
        there = [component for component in own if file in component.files]
        if there:
            scope = frame.f_code.co_qualname.partition(".")[0]
            named = [component.title for component in there if scope in component.classes]
            titles = " or ".join(named or [component.title for component in there])
            words = next(iter(str(error).splitlines()), "")
            place = f"{titles} raised {type(error).__name__} at {os.path.relpath(file)}:{line}"
            return f"{place}: {words}" if words else place
    return None


def targets(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The dotted key of every component, and the name of its class."""
    if isinstance(node, dict) and isinstance(node.get(TARGET), str):
        yield path, node[TARGET]
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from targets(child, join(path, key))


def _files(target: str) -> Iterator[tuple[Any, Path]]:
    """The class or function that `target` names, the classes that it derives from, and the file of each."""
    parts = target.split(".")
    modules = [(sys.modules.get(".".join(parts[:end])), parts[end:]) for end in range(len(parts) - 1, 0, -1)]
    module, names = next(((module, names) for module, names in modules if module is not None), (None, []))
    factory = reduce(lambda found, name: getattr(found, name, None), names, module)
    for kind in inspect.getmro(factory) if inspect.isclass(factory) else [factory]:
        file = getattr(sys.modules.get(getattr(kind, "__module__", "")), "__file__", None)
        if file is not None:
            yield kind, Path(file).resolve()


def _is_brought(file: Path, task_file: Path) -> bool:
    return is_ours(file, task_file) or is_standard_library(file) or bool(INSTALLED.intersection(file.parts))

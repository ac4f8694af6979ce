"""Which files of a user's own a run's components came from: once one has changed, results of before are another's."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path

from omegaconf import DictConfig

from atrl.settings import plain
from atrl.whose import INSTALLED, OUR_FOLDER, is_standard_library, targets

SOURCES = "sources.json"
"""In a run's folder, `own_sources` of it; absent where it had none."""


def own_sources(config: DictConfig) -> dict[str, str]:
    """By module, the SHA-256 of each file that a ``_target_`` of `config` lies in and that no installed package has.

    Those that such a file imports are with it, as far as its import statements say, wherever in it they stand.
    """
    files: dict[str, Path] = {}
    open_names = [target for _, target in targets(plain(config, resolve=False))]
    while open_names:
        found = _own_file(open_names.pop())
        if found is not None and found[0] not in files:
            module, file = found
            files[module] = file
            open_names += _imports(module, file)
    return {module: _checksum(file) for module, file in sorted(files.items())}


def sources_now(modules: Iterable[str]) -> dict[str, str]:
    """As `own_sources`, of those of `modules` that are there."""
    files = {module: _file(_spec(module)) for module in modules}
    return {module: _checksum(file) for module, file in files.items() if file is not None}


def changed_since(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Modules that a run had and that are others now, or not there."""
    return sorted(name for name, digest in before.items() if now.get(name) != digest)


def write_sources(folder: Path, sources: Mapping[str, str]) -> None:
    """Leave `SOURCES` in a run's `folder`, if there are any."""
    if sources:
        (folder / SOURCES).write_text(json.dumps(sources, indent=1) + "\n", encoding="utf-8")
    else:
        (folder / SOURCES).unlink(missing_ok=True)


def read_sources(folder: Path) -> dict[str, str]:
    """What `write_sources` left in `folder`."""
    file = folder / SOURCES
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _imports(module: str, file: Path) -> Iterator[str]:
    """What the statements of `file` import, as dotted names of something within a module."""
    package = module if file.stem == "__init__" else module.rpartition(".")[0]
    try:
        statements = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):  # said where the component is checked or made
        return
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (f"{alias.name}.*" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            with suppress(ImportError):  # more dots than there are packages
                place = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                yield from (f"{place}.{alias.name}.*" for alias in node.names)


def _own_file(target: str) -> tuple[str, Path] | None:
    """The module in the dotted name `target` and its file; None if it is atrl's, Python's or an installed package's."""
    names = target.split(".")
    top = _spec(names[0])  # alone: below it, looking up imports what is above
    places = [] if top is None else [top.origin] if top.origin else list(top.submodule_search_locations or [])
    if not places or any(_is_brought(Path(place)) for place in places):
        return None
    for count in range(len(names) - 1, 0, -1):
        module = ".".join(names[:count])
        if (file := _file(_spec(module))) is not None:
            return module, file
    return None


def _file(spec: ModuleSpec | None) -> Path | None:
    return Path(spec.origin) if spec is not None and spec.origin is not None and Path(spec.origin).is_file() else None


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _spec(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except Exception:  # within a class, of no package, or of a package whose own code fails: looking runs that
        return None


def _is_brought(place: Path) -> bool:
    ours = place.resolve().is_relative_to(OUR_FOLDER)
    return ours or not place.exists() or is_standard_library(place) or bool(INSTALLED.intersection(place.parts))

"""Which files of a user's own a run's components came from: once one has changed, results of before are another's."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sysconfig
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path

from omegaconf import DictConfig

from atrl.settings import flat, plain

SOURCES = "sources.json"
"""In a run's folder, `own_sources` of it; absent where it had none."""


def own_sources(config: DictConfig) -> dict[str, str]:
    """By name, the SHA-256 of each file that a ``_target_`` of `config` lies in and that no installed package has.

    What such a file imports is not looked at.
    """
    targets = {value for key, value in _leaves(plain(config, resolve=False)) if key == "_target_"}
    files = {file for target in targets if isinstance(target, str) for file in _own_file(target)}
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def changed_since(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of files that a run had and that are others now, or not there."""
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


def _leaves(tree: object) -> Iterator[tuple[str, object]]:
    """(last key, value) of everything in nested mappings and lists."""
    for key, value in flat(tree).items():
        if isinstance(value, list):
            for item in value:
                yield from _leaves(item)
        else:
            yield key.rpartition(".")[2], value


def _own_file(target: str) -> Iterator[Path]:
    """The file of the module in the dotted name `target`, unless it is atrl's, Python's or an installed package's."""
    names = target.split(".")
    top = _spec(names[0])
    if top is None or names[0] == "atrl" or _is_installed(top):
        return
    for count in range(len(names) - 1, 0, -1):
        spec = _spec(".".join(names[:count]))
        if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
            yield Path(spec.origin)
            return


def _spec(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):  # within a class, or of no package
        return None


def _is_installed(spec: ModuleSpec) -> bool:
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    homes = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not any(Path(place).exists() for place in places) or any(
        Path(place).is_relative_to(home) for place in places for home in homes
    )

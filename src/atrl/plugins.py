"""Config folders of other packages: credit schemes, rewards, algorithms, benchmarks … that `atrl` can be told to use.

A package names its folder by an entry point of the group ``atrl.configs``, for instance ``markers =
"atrl_markers.conf"``. The folder is laid out like atrl's own ``conf/``, and is put on Hydra's search path behind it.
Nothing of the package is imported for that: its code runs where a config that names it in ``_target_`` is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

GROUP = "atrl.configs"


@dataclass(frozen=True, slots=True)
class PlugIn:
    """One entry point of `GROUP`."""

    name: str
    distribution: str
    """Name and version, as ``"atrl-markers 0.1"``."""
    package: str
    """The name that it is imported by."""
    homes: tuple[Path, ...]
    """Where the package lies; none where it is not there."""
    folder: Path | None
    """With its configs; None where there is a `fault`."""
    fault: str = ""
    """Why its configs can't be used, and what to do."""


@lru_cache(maxsize=1)
def installed() -> tuple[PlugIn, ...]:
    """Every plug-in that is installed, those that can't be used included, in the order of their names."""
    found = {(point.name, point.value): point for point in entry_points(group=GROUP)}  # a path may be listed twice
    return tuple(_read(found[key]) for key in sorted(found))


def _read(point: EntryPoint) -> PlugIn:
    distribution = "a package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
    package, *rest = point.value.split(".")
    if not all(part.isidentifier() for part in (package, *rest)):
        fault = f"{point.value!r} is no dotted name of a folder: write {GROUP} as 'package.conf'"
        return PlugIn(point.name, distribution, package, (), None, fault)
    homes = _homes(package)
    if not homes:
        fault = f"there is no package {package!r}: install {distribution.partition(' ')[0]} again"
        return PlugIn(point.name, distribution, package, (), None, fault)
    folders = [home.joinpath(*rest) for home in homes]
    folder = next((folder for folder in folders if any(folder.glob("*/**/*.yaml"))), None)
    fault = "" if folder else f"there is no config in {folders[0]}: add its YAML files to the package's data"
    return PlugIn(point.name, distribution, package, homes, folder, fault)


def _homes(package: str) -> tuple[Path, ...]:
    """The folders of a top-level package, which is not imported."""
    from importlib.util import find_spec

    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return ()
    return tuple(map(Path, spec.submodule_search_locations or ())) if spec else ()


def complaints(own: Path) -> Iterator[str]:
    """One line for each plug-in that can't be used, and for each config that another of the same name hides.

    `own` is the folder of atrl's configs, which come first.
    """
    taken = dict.fromkeys(_options(own), "atrl")
    for plug_in in installed():
        title = f"plug-in {plug_in.name} ({plug_in.distribution})"
        if plug_in.folder is None:
            yield f"{title} is left out: {plug_in.fault}"
            continue
        for option in _options(plug_in.folder):
            if option in taken:
                yield f"{title}: its {option} is hidden by that of {taken[option]}: it needs another name"
            taken.setdefault(option, plug_in.name)


def _options(folder: Path) -> Sequence[str]:
    """``"group=option"`` of every config in a folder."""
    files = sorted(folder.glob("*/**/*.yaml"))
    return [f"{file.relative_to(folder).parent.as_posix()}={file.stem}" for file in files]


def is_plugged_in(file: Path) -> bool:
    """Whether `file` is part of a plug-in's package."""
    return any(file.is_relative_to(home.resolve()) for plug_in in installed() for home in plug_in.homes)


class PluggedInConfigs(SearchPathPlugin):
    """Puts the folders of all plug-ins behind those that are there."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra whenever it makes a search path."""
        for plug_in in installed():
            if plug_in.folder is not None:
                search_path.append(provider=f"atrl plug-in {plug_in.name}", path=f"file://{plug_in.folder}")


def register() -> None:
    """Let Hydra know of the plug-ins; once is enough, and more do no harm."""
    Plugins.instance().register(PluggedInConfigs)

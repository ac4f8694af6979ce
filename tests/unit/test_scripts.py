"""Scripts outside the package, some of which run for hours and so in no test: what they import is there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path for folder in ("benchmarks", "examples", "experiments", "scripts") for path in (ROOT / folder).rglob("*.py")
)


def imported(path: Path) -> list[tuple[str, str]]:
    """(module, name) of all that `path` imports of atrl by name, also inside of functions."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return [(node.module, alias.name) for node in nodes for alias in node.names if (node.module or "")[:4] == "atrl"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_script_imports_is_there(path: Path) -> None:
    for module, name in imported(path):
        found = importlib.import_module(module)
        assert hasattr(found, name) or importlib.import_module(f"{module}.{name}"), f"{module} has no {name}"


def test_imports_inside_of_functions_are_seen() -> None:
    assert ("atrl.quiet", "set_environment") in imported(ROOT / "benchmarks" / "step.py")

"""Which components of a config are the user's own, and which of them an error is laid to."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from atrl.cli import user_message
from atrl.whose import blame, own_components

CODE = """
import json

from own_base import Base


class Scheme(Base):
    def parse(self):
        json.loads("{")


class Other(Base):
    pass


def make(size=1):
    raise ValueError(f"size is {size}")
"""

BASE = """
class Base:
    def __init__(self, size=1):
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")

    def fail(self):
        raise KeyError("first\\nsecond")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """On the path, with the modules `own_parts`, imported, and `own_base`, which its classes derive from."""
    for name, code in (("own_parts", CODE), ("own_base", BASE)):
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("own_parts")
    return tmp_path


def own(config: dict, **choices: str):
    return own_components(OmegaConf.create(config), choices, Path(__file__))


def caught(call) -> Exception:
    with pytest.raises(Exception) as found:
        call()
    return found.value


def test_components_of_files_that_no_package_brought_are_the_users(folder):
    config = {
        "credit": {"_target_": "own_parts.Scheme", "inner": [{"_target_": "own_parts.make"}]},
        "loss": {"_target_": "atrl.loss.clipped.ClippedLoss"},
        "library": {"_target_": "omegaconf.OmegaConf"},
        "python": {"_target_": "collections.Counter"},
        "program": {"_target_": f"{__name__}.caught"},
        "never": {"_target_": "never_imported.Scheme"},
        "gone": {"_target_": "own_parts.Gone"},
        "open": "???",
    }
    first, second = own(config, credit="surprise", loss="clipped")
    assert (first.title, first.classes) == ("credit=surprise", {"Scheme", "Base"})
    assert first.files == {folder / "own_parts.py", folder / "own_base.py"}
    assert (second.title, second.files) == ("credit.inner.0", {folder / "own_parts.py"})


@pytest.mark.parametrize("target", ["own_parts.Scheme", "own_parts.make"])
def test_a_raise_while_it_is_built_is_a_message_and_a_later_one_is_none(folder, target):
    config = {"credit": {"_target_": target, "size": 0}}
    built = caught(lambda: instantiate(OmegaConf.create(config["credit"])))
    assert "size" in user_message(built, Path(__file__), own(config))
    assert user_message(built, Path(__file__)) is None
    later = caught(lambda: sys.modules["own_parts"].make(size=0))
    assert user_message(later, Path(__file__), own(config)) is None


def test_the_line_names_the_component_and_where_it_was_at_work(folder):
    found = own({"credit": {"_target_": "own_parts.Scheme"}}, credit="surprise")
    scheme = sys.modules["own_parts"].Scheme()
    in_library = blame(caught(scheme.parse), found)
    line = CODE.splitlines().index('        json.loads("{")') + 1
    assert in_library.startswith(f"credit=surprise raised JSONDecodeError at {os.path.relpath(folder)}/own_parts.py:")
    assert f"own_parts.py:{line}: Expecting property name" in in_library
    assert "own_base.py:8: 'first" in blame(caught(scheme.fail), found)
    assert blame(caught(lambda: int("many")), found) is None
    assert blame(caught(scheme.parse), []) is None


def test_of_two_in_one_file_it_is_that_whose_method_failed(folder):
    found = own({"a": {"_target_": "own_parts.Scheme"}, "b": {"_target_": "own_parts.Other"}})
    scheme = sys.modules["own_parts"].Scheme()
    assert blame(caught(scheme.parse), found).startswith("a raised JSONDecodeError")
    assert blame(caught(sys.modules["own_parts"].make), found).startswith("a or b raised ValueError")


def test_an_error_without_words_ends_with_its_place(folder):
    (folder / "own_silent.py").write_text("def fail():\n    assert False\n")
    fail = importlib.import_module("own_silent").fail
    line = blame(caught(fail), own({"a": {"_target_": "own_silent.fail"}}))
    assert line == f"a raised AssertionError at {os.path.relpath(folder)}/own_silent.py:2"

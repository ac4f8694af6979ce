"""A run knows the files of a user's own that it was made with."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from atrl.own_code import changed_since, own_sources, read_sources, sources_now, write_sources


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with a module, and a package with a module in it."""
    (tmp_path / "mine_alone.py").write_text("class Scheme: ...\n")
    (tmp_path / "mine_package").mkdir()
    (tmp_path / "mine_package" / "__init__.py").touch()
    (tmp_path / "mine_package" / "mine_alone.py").write_text("class Judge: ...\n")  # of the same name
    (tmp_path / "mine_package" / "inner.py").write_text("class Outer:\n    class Part: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return tmp_path


def test_files_of_ones_own_are_known_by_their_bytes(own: Path) -> None:
    """Wherever a component stands; atrl's, Python's and installed packages' are not one's own."""
    config = OmegaConf.create({
        "credit": {"_target_": "mine_alone.Scheme", "power": 1},
        "reward": {"parts": [{"_target_": "mine_package.inner.Outer.Part"}, {"_target_": "atrl.rewards.exact.Exact"}]},
        "data": {"_target_": "json.loads"}, "logger": {"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger"}},
        "callbacks": {"x": {"_target_": "no_such_module.Thing"}, "y": {"_target_": "mine_package.mine_alone.Judge"}},
        "note": "mine_alone.Scheme", "nothing": None,
    })  # fmt: skip
    found = own_sources(config)
    expected = {"mine_alone": own / "mine_alone.py"}
    expected |= {f"mine_package.{name}": own / "mine_package" / f"{name}.py" for name in ("inner", "mine_alone")}
    assert found == {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in expected.items()}
    (own / "mine_alone.py").write_text("class Scheme: power = 2\n")
    assert changed_since(found, own_sources(config)) == ["mine_alone"]
    assert changed_since(found, {}) == ["mine_alone", "mine_package.inner", "mine_package.mine_alone"]
    assert changed_since({}, found) == []  # a run from before this was written down
    assert sources_now(found) == own_sources(config) and sources_now(["mine_alone.Scheme", "no_such_module"]) == {}


@pytest.mark.parametrize("code", ["broken = undefined\n", "def broken(:\n", "raise SystemError\n"])
def test_a_package_whose_own_code_fails_is_another_one_and_no_error(own: Path, code: str) -> None:
    """Looking for a module in it runs that code; what fails is said where the component is checked or made."""
    config = OmegaConf.create({"credit": {"_target_": "mine_broken.inner.Scheme"}})
    (own / "mine_broken").mkdir()
    (own / "mine_broken" / "__init__.py").write_text(code)
    (own / "mine_broken" / "inner.py").write_text("class Scheme: ...\n")
    assert changed_since({"mine_broken.inner": "12"}, own_sources(config)) == ["mine_broken.inner"]


def test_they_are_left_with_the_run(tmp_path: Path) -> None:
    assert read_sources(tmp_path) == {}
    write_sources(tmp_path, {"a.py": "12"})
    assert read_sources(tmp_path) == {"a.py": "12"}
    write_sources(tmp_path, {})
    assert list(tmp_path.iterdir()) == []

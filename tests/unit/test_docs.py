"""What the documentation tells a reader to type: every command's config composes, and what it links to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

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


@pytest.mark.parametrize(("program", "arguments"), documented())
def test_a_documented_command_composes(program: str, arguments: str) -> None:
    words = [word for word in shlex.split(arguments) if word != "-m"]
    if "-m" in arguments.split():  # the first job of the sweep
        words = [f"{key}={value.split(',')[0]}" for key, _, value in (word.partition("=") for word in words)]
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        assert compose(program, overrides=words)


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


def leaves(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    children = entry.values() if isinstance(entry, dict) else entry
    return [leaf for child in children for leaf in leaves(child)]

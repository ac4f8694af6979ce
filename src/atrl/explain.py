"""What was wrong with a command line, worked out after Hydra has refused it.

Hydra's own messages name the override that failed. Here the config is composed again without it, so that the
message can name the key, group or option that was probably meant.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException

from atrl.composition import REFUSALS, Composition, chosen_groups
from atrl.suggest import did_you_mean

PLUGINS = ("joblib", "submitit_local", "submitit_slurm", "optuna")
"""Options of Hydra's own groups that come with packages of the extra ``sweeps``."""

Lister = Callable[[str, ObjectType], list[str]]
"""The names of the groups or configs in a folder of the search path."""

NOISE = ("Config search path:", "Search path:", "See https://")
"""Where the part of Hydra's messages starts that is no help in one line."""


@dataclass(frozen=True)
class CommandLine:
    """Where the configs lie and what the user asked for."""

    folder: Path
    config_name: str
    overrides: tuple[str, ...]
    multirun: bool

    @classmethod
    def parse(cls, arguments: Sequence[str], *, home: Path, config_path: str | Path, config_name: str) -> CommandLine:
        """Reads the program's arguments as Hydra does, with its ``--config-path`` and ``--config-name``.

        `home` is the folder of the program, which config paths are relative to.
        """
        flags, _ = get_args_parser().parse_known_args(list(arguments))
        overrides = list(flags.overrides)
        if flags.config_dir is not None:
            overrides.append(f"hydra.searchpath=['file://{Path(flags.config_dir).absolute()}']")
        folder = home / (flags.config_path or config_path)
        return cls(folder, flags.config_name or config_name, tuple(overrides), flags.multirun)


def unknown_flag(arguments: Sequence[str]) -> str | None:
    """A line on the first ``--flag`` that Hydra doesn't have, as in ``--seed 3`` and ``--seed=3``."""
    parser = get_args_parser()
    _, unknown = parser.parse_known_args(list(arguments))
    flag = next((text for text in unknown if text.startswith("--") and len(text) > len("--")), None)
    if flag is None:
        return None
    name, _, value = flag.partition("=")
    if near := did_you_mean(name, [known for action in parser._actions for known in action.option_strings]):
        return f"no flag {name}{near}"
    after = arguments[arguments.index(flag) + 1 :][:1]
    value = value or "".join(text for text in after if text[0] != "-" and "=" not in text) or "VALUE"
    return f"no flag {name}: options are written key=value, as in {name.strip('-').replace('-', '_')}={value}"


def overrides_first(arguments: Sequence[str]) -> list[str]:
    """`arguments` as Hydra's parser reads them, which takes no override behind a flag that stands behind another.

    The flags go to the end: before an override, ``--info`` would take it for its value. What the parser reads as it is,
    or not in any order, stays as it is.
    """
    parser = get_args_parser()
    if not parser.parse_known_args(list(arguments))[1]:
        return list(arguments)
    asked, unknown = parser.parse_known_intermixed_args(list(arguments))
    if unknown:
        return list(arguments)
    flags, overrides = [], list(asked.overrides)
    for text in arguments:
        if overrides and text == overrides[0]:
            del overrides[0]
        else:
            flags.append(text)
    return [*asked.overrides, *flags]


def explain(error: Exception, command: CommandLine) -> list[str] | None:
    """One line for each thing that is wrong with `command`, for an error raised before any job ran.

    Returns None where `error` is not of the kind that a user causes.
    """
    by_hydra = isinstance(error, ValueError) and _raised_in_hydra(error)
    if not (by_hydra or isinstance(error, REFUSALS)):
        return None
    problems: list[str] = []
    # Where composing fails even without the overrides that are to blame, the YAML is wrong, as `error` says.
    with suppress(*REFUSALS, ValueError):
        problems.extend(override_problems(command))
    return problems or [_in_one_line(error)]


def override_problems(command: CommandLine) -> Iterator[str]:
    """One line for each override that names no key, group or option, or that can't be read."""
    with initialize_config_dir(str(command.folder.absolute()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        search_path = [text for text in command.overrides if text.startswith("hydra.searchpath=")]

        def names(parent: str, kind: ObjectType) -> list[str]:
            return loader.get_group_options(parent, kind, command.config_name, search_path)

        groups = {group: options(names, group) for group in all_groups(names)}
        there = chosen_groups(command.config_name, search_path)
        overrides: list[Override] = []
        choices: list[str] = []
        for text in command.overrides:
            override = _parsed(text, loader)
            if override is None:
                yield _unreadable(text)
            elif override.is_sweep_override() and not command.multirun:
                yield _sweep_without_multirun(override)
            elif override.key_or_group not in groups:
                overrides.append(override)
            elif problem := _option_problem(override, groups[override.key_or_group]):
                yield problem
            elif there is not None and override.key_or_group not in there and not override.is_add():
                yield _foreign_group(override, names("", ObjectType.CONFIG), search_path)
            else:
                choices += _one_choice(override)
        composition = Composition(command.config_name, [*search_path, *choices], groups)
        yield from filter(None, map(composition.key_problem, overrides))


def all_groups(names: Lister, parent: str = "") -> Iterator[str]:
    """Every config group at or below `parent`, nested ones as ``"hydra/launcher"``."""
    for name in names(parent, ObjectType.GROUP):
        group = f"{parent}/{name}" if parent else name
        yield group
        yield from all_groups(names, group)


def options(names: Lister, group: str) -> list[str]:
    """Every option of a group, those in its subfolders as ``"folder/option"``."""
    direct = sorted(names(group, ObjectType.CONFIG))
    folders = names(group, ObjectType.GROUP)
    return direct + [f"{name}/{option}" for name in folders for option in options(names, f"{group}/{name}")]


def _parsed(text: str, loader: ConfigLoader) -> Override | None:
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides([text])[0]
    except HydraException:
        return None


def _unreadable(text: str) -> str:
    return (
        f"the override {text!r} can't be read: write key=value, without spaces around the '='; a value with "
        f"special characters needs quotes of its own, as in 'key=\"a: b\"'"
    )


def _sweep_without_multirun(override: Override) -> str:
    key, _, values = override.input_line.partition("=")
    return f"{key}={values} is a sweep: add --multirun for a job a value, or write '{key}=[{values}]' for a list"


def _option_problem(override: Override, known: Sequence[str]) -> str | None:
    group = override.key_or_group
    for value in _asked_for(override):
        if value not in known:
            name = "null" if value is None else str(value)
            near = _plugin(name) or _checkpoint(group, name) or did_you_mean(name, known)
            direct = [option for option in known if "/" not in option]  # the others have groups of their own
            return f"{group}={name}: there is no such option of {group!r}{near} (there are {_listed(direct or known)})"
    return None


def _foreign_group(override: Override, configs: Sequence[str], search_path: list[str]) -> str:
    """A group that this program doesn't choose from, though its folder is there."""
    group = override.key_or_group
    holders = [name for name in configs if group in (chosen_groups(name, search_path) or ())]
    where = f": it belongs to {' and '.join(f'{name}.yaml' for name in holders)}" if holders else ""
    return f"{override.input_line}: no {group!r} is chosen here{where}"


def _plugin(option: str) -> str:
    """What to install for an option that a plug-in brings."""
    name = option.rpartition("/")[2]
    return f", install it: pip install 'atrl[sweeps]' brings {name}" if name in PLUGINS else ""


def _checkpoint(group: str, option: str) -> str:
    """How a checkpoint is named: by its path, or by owner and name on the hub, which no YAML can have."""
    named = group == "model" and "/" in option
    return f"; for a checkpoint or a model of the hub write model=pretrained model.path={option}" if named else ""


def _asked_for(override: Override) -> list[Any]:
    """The options of a group that an override names: one, a list, or a sweep's; none where it deletes it."""
    if override.is_delete():
        return []
    if override.is_sweep_override():
        return list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
    value = override.value()
    if isinstance(value, dict):  # not a choice: values for keys of the group's node
        return []
    return value if isinstance(value, list) else [value]


def _one_choice(override: Override) -> list[str]:
    """The override itself, or one of a sweep's jobs; no list where there is none to choose."""
    if not override.is_sweep_override():
        return [override.input_line]
    return [f"{override.get_key_element()}={value}" for value in _asked_for(override)[:1]]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _raised_in_hydra(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(hydra.__file__).parent)


def _in_one_line(error: Exception) -> str:
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        near = did_you_mean(option, error.options)
        known = _listed(list(error.options))
        return f"a defaults list asks for {group}={option}, which does not exist{near} (there are {known})"
    text = str(error)
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        text = f"{text}: {str(error.__cause__).partition(chr(10))[0]}"
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.strerror}: {error.filename}"
    for noise in NOISE:
        text = text.partition(noise)[0]
    if isinstance(error, MissingConfigException) and (plugin := _plugin(error.missing_cfg_file or "")):
        text = text.rstrip().removesuffix(".") + plugin
    return " ".join(text.split())

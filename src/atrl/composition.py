"""The config that the usable part of a command line composes, and what was probably meant by a key that it lacks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import yaml
from hydra import compose
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atrl.schema import locate
from atrl.suggest import nearest_keys

REFUSALS = (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError)
"""What Hydra raises for a command line or a YAML file that it can't use, besides its own ValueErrors."""


def chosen_groups(config_name: str, search_path: list[str]) -> set[str] | None:
    """The groups that a config chooses from; None for one that composes by no means."""
    try:
        config = compose(config_name, search_path, return_hydra_config=True)
    except (*REFUSALS, ValueError):
        return None
    return set(config.hydra.runtime.choices)


class Composition:
    """The config as the usable group choices compose it."""

    def __init__(self, config_name: str, choices: list[str], groups: Mapping[str, Sequence[str]]) -> None:
        self.config_name, self.choices, self.groups = config_name, choices, groups
        config = compose(config_name, choices, return_hydra_config=True)
        self.chosen = {group: config.hydra.runtime.choices.get(group) for group in groups}
        self._node = OmegaConf.to_container(config, resolve=False)
        self.keys = dotted_keys(self._node)

    def key_problem(self, override: Override) -> str | None:
        """A line on an override whose key does not exist; None for one that exists or is being added."""
        key = override.key_or_group
        if override.is_add() or override.is_force_add() or key in self.keys or self._is_hydras(key):
            return None
        return f"no key {key!r}{self._unlisted(key) or self._with_other_option(key) or self._near(key)}"

    def _is_hydras(self, key: str) -> bool:
        """Whether it is a ``_target_`` or its like that is there, which `keys` leaves out."""
        node, name = self._holder(key)
        return name.startswith("_") and name in node

    def _holder(self, key: str) -> tuple[dict[Any, Any], str]:
        """The node that `key` would be in, empty where there is none such, and its name there."""
        node: Any = self._node
        *path, name = key.split(".")
        for part in path:
            node = dict(enumerate(node)) if isinstance(node, list) else node
            node = node.get(int(part) if part.isdecimal() else part) if isinstance(node, dict) else None
        return node if isinstance(node, dict) else {}, name

    def _unlisted(self, key: str) -> str | None:
        """How to give an option that a component has and its node leaves at its default."""
        node, name = self._holder(key)
        if "_target_" not in node:
            return None
        with suppress(ValueError):
            if name in inspect.signature(locate(node["_target_"])).parameters:
                return f": it is an option of {node['_target_']} that this config leaves at its default: write +{key}=…"
        return None

    def _near(self, key: str) -> str:
        in_hydra = key.startswith("hydra")
        known = [name for name in self.keys if name.startswith("hydra") == in_hydra]
        groups = [group for group in self.groups if group.startswith("hydra") == in_hydra]
        near = nearest_keys(key, dict.fromkeys([*known, *groups]))
        if near:
            return f", did you mean {' or '.join(repr(name) for name in near)}?"
        return f": --cfg job shows all there are; to add it, write +{key}=VALUE"

    def _with_other_option(self, key: str) -> str | None:
        """Which other options of its group have the key, as ``credit.anchor_ratio`` needs ``credit=atrl``."""
        group = key.partition(".")[0]
        holders = [
            f"{group}={option}"
            for option in self.groups.get(group, [])
            if option != self.chosen[group] and self._has(key, f"{group}={option}")
        ]
        return f" with {group}={self.chosen[group]}: it belongs to {', '.join(holders)}" if holders else None

    def _has(self, key: str, choice: str) -> bool:
        group = choice.partition("=")[0]
        others = [other for other in self.choices if other.partition("=")[0] != group]
        try:
            config = compose(self.config_name, [*others, choice])
        except REFUSALS:
            return False
        return key in dotted_keys(OmegaConf.to_container(config, resolve=False))


def dotted_keys(node: Any, path: str = "") -> list[str]:
    """The dotted key of every node below `node`, Hydra's own ``_target_`` and its like left out."""
    if not isinstance(node, dict | list):
        return []
    children = node.items() if isinstance(node, dict) else enumerate(node)
    keys = []
    for name, child in children:
        if not str(name).startswith("_"):
            key = f"{path}.{name}" if path else str(name)
            keys += [key, *dotted_keys(child, key)]
    return keys

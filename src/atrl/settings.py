"""Whether two runs compute the same: their settings side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

FREE = (
    *("resume", "resume_allow", "verbose", "experiment", "logger", "callbacks", "plan", "planner", "hardware"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.threads"),
    *("trainer.cpu_offload", "trainer.activation_checkpointing", "trainer.checkpoint_every", "trainer.keep_best"),
    "trainer.record_steps",
)
"""Keys that may change between the parts of a run: they change where and how it computes, and not what."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, allow: Iterable[str] = ()) -> list[str]:
    """In words each setting that changes what a run computes and is not the same in both configs.

    Keys in `allow`, and the groups they name, may differ, as those in `FREE` may.
    """
    allowed = {*FREE, *allow}
    before, now = flat(before), flat(now)
    return [
        f"{key} was {show(before, key)} and is {show(now, key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, ...) != now.get(key, ...) and not _covered(key, allowed)
    ]


def settings_of(config: DictConfig) -> dict[str, Any]:
    """The config as plain values, without what Hydra itself needs."""
    ours = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return plain(ours, resolve=True)


def plain(config: DictConfig | ListConfig, *, resolve: bool) -> dict[str, Any]:
    """A mapping of the config as a plain one.

    Raises:
        AssertionError: if it is a list.
    """
    values = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(values, dict), f"a config must be a mapping, got {type(values).__name__}"
    return {str(key): value for key, value in values.items()}


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; lists are values, and so are empty mappings."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def show(settings: Mapping[str, Any], key: str) -> str:
    """The value of `key`, or that there is none."""
    return json.dumps(settings[key]) if key in settings else "absent"


def _covered(key: str, allowed: set[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in allowed)

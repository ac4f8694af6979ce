"""The command that one job of a sweep is: a run of its own, with the job's overrides and folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OF_THE_SWEEP = ("hydra.callbacks", "hydra.hydra_logging", "hydra.launcher", "hydra.mode", "hydra.run", "hydra.sweep")
"""Hydra's settings that a job has no use for: ``hydra.sweep`` stands for ``hydra.sweeper`` too."""

OF_CONFIGS = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp")
"""Hydra's flags that say where configs lie; overrides mean nothing without them. Each takes a value."""

MAX_TAG = 64
"""Characters in a W&B tag at most; a longer one is refused by W&B."""


def quoted(text: str) -> str:
    """`text` as a value in an override, whatever is in it, interpolations taken literally.

    In Hydra's grammar backslashes count only before a quote, and at the end; OmegaConf takes ``\\${`` for ``${``.
    """
    text = text.replace("${", "\\${")
    escaped, backslashes = "", 0
    for character in text:
        if character == "'":
            escaped += "\\" * (backslashes + 1)
        backslashes = backslashes + 1 if character == "\\" else 0
        escaped += character
    return f"'{escaped}{chr(92) * backslashes}'"


def key_of(override: str) -> str:
    """The key or group that an override names, without the marks for adding and deleting."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0].replace("/", ".")


def inherited(overrides: Sequence[str]) -> list[str]:
    """Those of a sweep's overrides of Hydra itself that its jobs need too, as ``hydra.searchpath``."""
    return [text for text in overrides if not key_of(text).startswith(OF_THE_SWEEP)]


def _is_hydras(word: str) -> bool:
    return "=" in word and key_of(word).startswith("hydra.")


def config_flags(command: str | None) -> list[str]:
    """Those of `OF_CONFIGS` in a command that was written down, and what a job inherits, as ``hydra.searchpath``; with
    their values as they were given."""
    try:
        words = shlex.split(command or "")
    except ValueError:  # somebody has edited it
        return []
    found: list[str] = []
    for word, value in zip(words, [*words[1:], ""], strict=False):
        if word in OF_CONFIGS:
            found += [word, value]
        elif word.partition("=")[0] in OF_CONFIGS or (_is_hydras(word) and inherited([word])):
            found.append(word)
    return found


def tracking(config: Mapping[str, Any], overrides: Sequence[str], *, sweep: str, shown: Sequence[str]) -> list[str]:
    """Overrides that put the job's W&B run into its sweep's group, unless the user said where it belongs.

    Args:
        config: the job's.
        overrides: the job's, as the user wrote them.
        sweep: the name of the sweep's folder.
        shown: the overrides that tell the job from others, which become its name and tags.
    """
    if "wandb" not in (config.get("logger") or {}):
        return []
    settings = {
        "group": quoted(sweep),
        "name": quoted(" ".join(shown)[:128] or sweep),
        "tags": "[" + ",".join(quoted(text[:MAX_TAG]) for text in shown) + "]",
    }
    taken = {key_of(text) for text in overrides}
    return [f"logger.wandb.{name}={value}" for name, value in settings.items() if f"logger.wandb.{name}" not in taken]


def command(script: Path, arguments: Sequence[str], *, ranks: int = 1) -> list[str]:
    """What starts `script` in `ranks` processes; torchrun finds a port of their own for several."""
    if ranks == 1:
        return [sys.executable, str(script), *arguments]
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")
    return [sys.executable, *torchrun, str(script), *arguments]

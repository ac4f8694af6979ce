"""Which schemes are asked for, each with its own options, and whether a single answer is enough for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from atrl.composition import dotted_keys

GROUP = "credit"


def single_configs(config: DictConfig, overrides: Sequence[str], choice: str | None) -> dict[str, DictConfig]:
    """By scheme, `config` with that scheme alone.

    Hydra merges the options of ``credit=[a,b]`` into one node, so each scheme's is composed again by itself; of
    ``credit.KEY=VALUE`` it gets those whose key it has.

    Args:
        config: as Hydra composed it.
        overrides: of the command line.
        choice: Hydra's own record of the group's option, where it is a single one.

    Raises:
        ValueError: where no scheme is asked for.
    """
    names = _asked_for(overrides, choice)
    if not names or "none" in names:
        raise ValueError("credit=none weighs nothing, so there is nothing to inspect: name a scheme, as credit=atrl")
    own = [text for text in overrides if text.lstrip("+~").startswith(f"{GROUP}.")]
    return {name: _with_node(config, _node(name, own)) for name in names}


def _asked_for(overrides: Sequence[str], choice: str | None) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = [override.value() for override in parsed if override.key_or_group == GROUP]
    last = values[-1] if values else choice
    return [str(name) for name in last] if isinstance(last, list) else [str(last)] if last else []


def _node(name: str, own: Sequence[str]) -> DictConfig:
    """The options of one scheme, composed with those of the overrides that are of its keys."""
    from hydra import compose

    plain = compose(overrides=[f"+{GROUP}={name}"])[GROUP]
    keys = dotted_keys(OmegaConf.to_container(plain, resolve=False), GROUP)
    fitting = [text for text in own if text.partition("=")[0].lstrip("+~") in keys]
    return compose(overrides=[f"+{GROUP}={name}", *fitting])[GROUP]


def _with_node(config: DictConfig, node: DictConfig) -> DictConfig:
    alone = OmegaConf.masked_copy(config, [str(key) for key in config if key != GROUP])
    with open_dict(alone):
        alone[GROUP] = node
    return alone


def check_single(name: str, scheme: Any) -> None:
    """Raises ValueError, in one line, for a scheme that a single answer is not enough for."""
    if scheme.scope == "batch":
        raise ValueError(
            f"credit={name} compares rollouts, and a single answer has none to be compared with: choose another "
            "scheme, or look at each response alone (vppo: credit.scale_low=1; entropy: credit.within=response)"
        )
    if scheme.head_search is not None:
        raise ValueError(
            f"credit={name} with heads=auto finds its heads on a run's problems: name them, "
            "credit.heads=[[LAYER,HEAD],…], as heads.json of a run lists them, or null for all"
        )

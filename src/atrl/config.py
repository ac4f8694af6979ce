"""What a config may hold: its sections, its components, and what must hold between them.

To add a setting, add a field to its section (`sections.py`); to add a section, write a frozen dataclass and name it
in `SECTIONS`; to add a component group, name it in `COMPONENTS`; to add a rule, write a function and list it in
`CHECKS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from atrl.annotations import show
from atrl.evaluation.settings import EvaluateSettings
from atrl.export.settings import ExportSettings
from atrl.inspect.settings import InspectSettings
from atrl.loss.checks import correction_suits_the_loss, credit_suits_the_loss, overlong_fits_the_response
from atrl.models.checks import (
    adapters_have_a_base,
    adapters_leave_a_reference,
    dropout_is_not_deterministic,
    dropout_leaves_no_ratio,
    quantized_weights_stay,
)
from atrl.plan.settings import PlannerSettings
from atrl.process_checks import processes_have_work, sharded_ranks_work_alike
from atrl.replay.settings import ReplaySettings
from atrl.rollout.checks import groups_can_be_separate, kept_tokens_are_known
from atrl.schema import UNSET, check_call, check_group, to_plain
from atrl.sections import OptimizerSettings, RunSettings, SftSettings, TrainerSettings
from atrl.suggest import did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Section = TypeVar("Section", bound="DataclassInstance")
Check = Callable[[DictConfig], str | None]

SECTIONS: dict[str, type] = {
    "": RunSettings,
    "trainer": TrainerSettings,
    "optimizer": OptimizerSettings,
    "planner": PlannerSettings,
    "sft": SftSettings,
}
"""The dataclass of each plain section of the training config; the root's name is empty."""

ROOTS: dict[str, dict[str, type]] = {
    "train": SECTIONS,
    "evaluate": {"": EvaluateSettings},
    "inspect": {"": InspectSettings},
    "export": {"": ExportSettings},
    "replay": {"": ReplaySettings},
}
"""The sections of each primary config, by its name in ``conf/``."""

COMPONENTS: dict[str, tuple[str, ...]] = {
    "algorithm": ("atrl.loss.objective.Objective",),
    "benchmark": ("atrl.benchmarks.base.Benchmark",),
    "callbacks": ("lightning.pytorch.callbacks.Callback",),
    "credit": ("atrl.credit.base.CreditScheme",),
    "data": ("atrl.data.base.ProblemSource", "atrl.benchmarks.source.OfficialRows"),
    "hardware": ("atrl.plan.hardware.Hardware",),
    "judge": ("atrl.benchmarks.judge.Judge",),
    "logger": ("lightning.pytorch.loggers.Logger",),
    "model": ("atrl.models.load.PretrainedModel", "atrl.models.load.ScratchModel", "atrl.models.smollm2.SmolLM2Model"),
    "reward": ("atrl.rewards.weighted.WeightedReward",),
    "rollout": ("atrl.rollout.settings.RolloutSettings",),
}
"""The groups that hold components: nodes with a ``_target_``, or lists or named sets of such. Of each the classes that
these may be; what can do the same, whatever its class, may stand in for one (`kinds.py`)."""


def read_section(node: DictConfig, kind: type[Section]) -> Section:
    """The fields of `kind` that `node` has, as a `kind`; other keys, as the root's groups, are ignored."""
    values = {field.name: node[field.name] for field in dataclasses.fields(kind) if field.name in node}
    plain = {
        name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for name, value in values.items()
    }
    return kind(**plain)


def check_config(
    config: DictConfig | Mapping[str, Any],
    *,
    sections: Mapping[str, type] | None = None,
    components: Mapping[str, tuple[str, ...]] | None = None,
    checks: Sequence[Check] | None = None,
) -> None:
    """Checks a composed config before anything is built from it, as far as names, types and cross-checks go.

    Args:
        config: the whole config; a node ``hydra`` is left alone.
        sections: the plain sections by name; None for `SECTIONS`.
        components: the component groups and the classes of each, any if none; None for `COMPONENTS`.
        checks: the rules on the whole config; None for `CHECKS`.

    Raises:
        ValueError: with one line for each problem: keys that nothing reads, values that don't fit their
            annotation, values that are missing. Ranges and cross-checks are looked at once these are right.
    """
    sections = SECTIONS if sections is None else sections
    problems: list[str] = []
    config = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
    tree = to_plain(config, problems, skip=("hydra",))
    _check_sections(tree, sections, COMPONENTS if components is None else components, problems)
    if not problems:
        problems += _refusals(tree, sections)
    if not problems:
        found = [check(config) for check in (CHECKS if checks is None else checks)]
        problems += [problem for problem in found if problem is not None]
    if problems:
        raise ValueError("\n".join(problems))


def _check_sections(
    tree: dict[str, Any], sections: Mapping[str, type], groups: Mapping[str, tuple[str, ...]], problems: list[str]
) -> None:
    settings = {field.name for field in dataclasses.fields(sections[""])}
    for key in tree.keys() - settings - groups.keys() - sections.keys():
        known = settings | groups.keys() | sections.keys() - {""}
        problems.append(f"{key} is read by nothing{did_you_mean(key, known) or ': delete it'}")
    for key in tree.keys() & groups.keys():
        check_group(tree[key], key, problems, groups[key])
    for key, kind in sections.items():
        node = _section(tree, key, kind)
        if node is None:
            problems.append(f"{key} is missing: add '- {key}: OPTION' to the defaults list of the config")
        elif isinstance(node, dict):
            check_call(kind, f"the section {key!r}", node, key, problems)
        elif node is not UNSET:
            problems.append(f"{key} must be a mapping, got {show(node)}")


def _section(tree: dict[str, Any], key: str, kind: type) -> Any:
    if key:
        return tree.get(key)
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: tree[name] for name in names if name in tree}


def _refusals(tree: dict[str, Any], sections: Mapping[str, type]) -> list[str]:
    """What the sections' own range checks say."""
    refused = []
    for key, kind in sections.items():
        try:
            kind(**_section(tree, key, kind))
        except ValueError as error:
            refused.append(str(error))
    return refused


def group_holds_a_comparison(config: DictConfig) -> str | None:
    """A group's advantages compare its responses, so one alone has none."""
    size = OmegaConf.select(config, "rollout.group_size")
    if size is None or size >= 2:
        return None
    return f"rollout.group_size must be at least 2, got {size}: advantages compare a prompt's responses"


CHECKS: tuple[Check, ...] = (
    adapters_have_a_base,
    adapters_leave_a_reference,
    dropout_is_not_deterministic,
    dropout_leaves_no_ratio,
    quantized_weights_stay,
    processes_have_work,
    sharded_ranks_work_alike,
    group_holds_a_comparison,
    overlong_fits_the_response,
    credit_suits_the_loss,
    correction_suits_the_loss,
    kept_tokens_are_known,
    groups_can_be_separate,
)
"""What must hold across the config; each returns one line, or None where all is well."""

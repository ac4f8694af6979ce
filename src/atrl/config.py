"""What a config may hold: its sections, its components, and what must hold between them.

To add a setting, add a field to its section; to add a section, write a frozen dataclass and name it in
`SECTIONS`; to add a component group, name it in `COMPONENTS`; to add a rule, write a function and list it in
`CHECKS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf

from atrl.annotations import show
from atrl.export.settings import ExportSettings
from atrl.inspect.settings import InspectSettings
from atrl.loss.checks import correction_suits_the_loss, credit_suits_the_loss, overlong_fits_the_response
from atrl.models.checks import (
    adapters_have_a_base,
    adapters_leave_a_reference,
    dropout_is_not_deterministic,
    quantized_weights_stay,
)
from atrl.plan.settings import PlannerSettings
from atrl.process_checks import one_process_draws, processes_have_work, sharded_ranks_work_alike
from atrl.rollout.checks import groups_can_be_separate, kept_tokens_are_known
from atrl.schema import UNSET, check_call, check_group, to_plain
from atrl.suggest import did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Section = TypeVar("Section", bound="DataclassInstance")
Check = Callable[[DictConfig], str | None]
Precision = Literal["32-true", "bf16-mixed"]

MAX_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The top level of ``conf/train.yaml``."""

    experiment: str = "demo"  # names the run's folder
    stage: Literal["rl", "sft", "sft_rl"] = "rl"
    seed: int = 0
    plan: bool = False  # True prints memory and time and ends
    verbose: bool = False  # True lets the libraries log what they like
    resume: str | None = None  # auto: the newest checkpoint of the run's folder, if any; or a path
    resume_allow: tuple[str, ...] = ()  # keys that may differ from the checkpoint's

    def __post_init__(self) -> None:
        """Raises ValueError for a seed that the random generators refuse."""
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """The group ``trainer``: how long, and on what."""

    max_steps: int = 120  # training steps of the RL stage, one rollout batch each
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int | Literal["auto"] = 1  # processes on each node
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"  # auto is ddp: a whole policy in each process; fsdp divides it
    precision: Precision = "32-true"
    cpu_offload: bool = False  # with fsdp, parameters and optimizer wait in host memory
    activation_checkpointing: bool = False  # activations are computed again for the backward pass
    deterministic: bool = False  # no bit of a prompt's rollouts and weights depends on batch, micro-batch or processes
    threads: int | None = None  # of each process; null for all cores divided among them, or 1 if deterministic
    record_steps: bool = True  # steps/, for replay.py
    evaluate_samples: int = 512  # held-out problems, before and after; 0 leaves the evaluation out
    evaluate_every: int | None = None  # steps; null for only before and after
    evaluate_greedy: bool = True  # these problems also at temperature 0
    evaluate_split: Literal["test", "selection"] = "test"  # selection to choose settings, test to report
    grounding_samples: int = 128  # of these problems, also without their own pictures; 0 leaves that out
    checkpoint_every: int | None = None  # steps; null for only one at the end
    keep_best: int = 0  # evaluated checkpoints that stay, beside the last

    def __post_init__(self) -> None:
        """Raises ValueError for a count that is too small."""
        at_least("trainer.max_steps", self.max_steps, 1, "each step takes one rollout batch")
        at_least("trainer.num_nodes", self.num_nodes, 1)
        at_least("trainer.evaluate_samples", self.evaluate_samples, 0, "0 leaves the evaluation out")
        at_least("trainer.keep_best", self.keep_best, 0, "0 keeps the last alone")
        at_least("trainer.grounding_samples", self.grounding_samples, 0, "0 leaves the controls out")
        if self.cpu_offload and self.strategy != "fsdp":
            raise ValueError(
                f"trainer.cpu_offload needs trainer.strategy=fsdp, got {self.strategy}: or set it to false"
            )
        if self.devices != "auto":
            at_least("trainer.devices", self.devices, 1, "write trainer.accelerator=cpu to use no GPU")
        if self.threads is not None:
            at_least("trainer.threads", self.threads, 1, "null takes all cores")
        if self.evaluate_every is not None:
            at_least("trainer.evaluate_every", self.evaluate_every, 1, "null scores only before and after")
        if self.checkpoint_every is not None:
            at_least("trainer.checkpoint_every", self.checkpoint_every, 1, "null saves only at the end")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The section ``optimizer``: AdamW for the RL stage, its schedule, gradient clipping and micro-batches."""

    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    warmup_steps: int = 5  # the learning rate rises linearly over so many optimizer steps
    decay_to: float = 0.1  # then falls linearly to this share of its peak at the last step; 1 keeps it constant
    max_gradient_norm: float = 1.0
    micro_batch_size: int = 64  # rollouts in one forward and backward pass; changes memory, not results
    micro_batch_tokens: int | None = None  # instead as many rollouts as have so many tokens, padding included
    share_prompts: bool = True  # run a prompt once, not with each of its responses
    logit_chunk_tokens: int | None = 1024  # tokens whose logits exist at a time, also in warm-up; null for all

    def __post_init__(self) -> None:
        """Raises ValueError for a rate or count that AdamW can't train with."""
        if self.learning_rate <= 0:
            raise ValueError(f"optimizer.learning_rate must be above 0, got {self.learning_rate}: try 1e-4")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must be in [0, 1), got {list(self.betas)}: try [0.9, 0.98]")
        if self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay must be 0 (off) or more, got {self.weight_decay}")
        if not 0 <= self.decay_to <= 1:
            raise ValueError(f"optimizer.decay_to must be in [0, 1], got {self.decay_to}: 1 keeps the rate constant")
        at_least("optimizer.warmup_steps", self.warmup_steps, 0, "0 starts at the full learning rate")
        at_least("optimizer.micro_batch_size", self.micro_batch_size, 1)
        if self.micro_batch_tokens is not None:
            at_least("optimizer.micro_batch_tokens", self.micro_batch_tokens, 1, "null counts rollouts instead")
        if self.logit_chunk_tokens is not None:
            at_least("optimizer.logit_chunk_tokens", self.logit_chunk_tokens, 1, "null takes all of a micro-batch")
        norm = self.max_gradient_norm
        if norm <= 0:
            raise ValueError(f"optimizer.max_gradient_norm must be above 0, got {norm}: try 1")

    def runs_prompts_once(self, group_size: int, *, whole_rows: bool) -> bool:
        """Whether prompts are run once: as set, unless credit needs `whole_rows`, prompt and response in one pass.

        Nor where no micro-batch has two responses to a prompt: two passes would take longer than one.
        """
        by_ones = self.micro_batch_size == 1 and self.micro_batch_tokens is None
        return self.share_prompts and not (whole_rows or by_ones or group_size == 1)


@dataclass(frozen=True, kw_only=True)
class SftSettings:
    """The section ``sft``: supervised warm-up on worked answers."""

    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 1.5e-3  # at its peak; decays to 5 % along a cosine
    weight_decay: float = 0.01
    warmup_steps: int = 20
    evaluate_every: int = 50  # steps between scores on the selection split; the best weights are kept

    def __post_init__(self) -> None:
        """Raises ValueError for a count that is too small."""
        for name in ("steps", "batch_size", "warmup_steps", "evaluate_every"):
            at_least(f"sft.{name}", getattr(self, name), 1)


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """The top level of ``conf/evaluate.yaml``."""

    checkpoint: str
    samples: int = 8  # per problem, for avg@k; 0 scores greedily alone
    grounding: bool = False  # also greedily with the pictures blanked, and with another problem's
    limit: int | None = 512  # at most so many problems; null for all
    threads: int | None = None  # null for all cores
    seed: int = 0
    verbose: bool = False
    predictions: str | None = None  # a file of recorded answers, to be scored instead of a checkpoint's
    extract_again: bool = False  # True reads recorded responses even where an extraction is recorded too
    missing: Literal["refuse", "skip"] = "refuse"  # what to do about problems that the file has no answer to
    compare: list[str] | None = None  # two finished evaluations, to be compared

    def __post_init__(self) -> None:
        """Raises ValueError for a count that is too small, or a seed that the random generators refuse."""
        check_seed(self.seed)
        if self.compare is not None and len(self.compare) != 2:
            raise ValueError(f"compare must name two results, got {len(self.compare)}: write compare=[FOLDER,FOLDER]")
        if self.threads is not None:
            at_least("threads", self.threads, 1, "null takes all cores")
        at_least("samples", self.samples, 0, "0 scores greedily alone")
        if self.limit is not None:
            at_least("limit", self.limit, 1, "null scores all problems")


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """The top level of ``conf/replay.yaml``."""

    run: str
    step: int
    tolerance: float = 0.0  # largest difference that still agrees
    sample: bool = False  # also draw the responses again
    verbose: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a step that no run has, or a negative tolerance."""
        at_least("step", self.step, 1, "steps are counted from 1")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must be 0 (bit for bit) or more, got {self.tolerance}")


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

COMPONENTS: tuple[str, ...] = (
    *("algorithm", "benchmark", "callbacks", "credit", "data", "hardware", "judge", "logger", "model", "reward"),
    "rollout",
)
"""The groups that hold components: nodes with a ``_target_``, or lists or named sets of such."""


def check_seed(seed: int) -> None:
    """Raises ValueError, in one line, for a `seed` below 0 or above `MAX_SEED`."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be in [0, {MAX_SEED}], got {seed}")


def at_least(key: str, value: int, least: int, remedy: str = "") -> None:
    """Raises ValueError, in one line that starts with the config key, where `value` is below `least`."""
    if value < least:
        raise ValueError(f"{key} must be at least {least}, got {value}" + (f": {remedy}" if remedy else ""))


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
    components: Iterable[str] | None = None,
    checks: Sequence[Check] | None = None,
) -> None:
    """Checks a composed config before anything is built from it, as far as names, types and cross-checks go.

    Args:
        config: the whole config; a node ``hydra`` is left alone.
        sections: the plain sections by name; None for `SECTIONS`.
        components: the names of the component groups; None for `COMPONENTS`.
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
    tree: dict[str, Any], sections: Mapping[str, type], components: Iterable[str], problems: list[str]
) -> None:
    groups = set(components)
    settings = {field.name for field in dataclasses.fields(sections[""])}
    for key in tree.keys() - settings - groups - sections.keys():
        known = settings | groups | sections.keys() - {""}
        problems.append(f"{key} is read by nothing{did_you_mean(key, known) or ': delete it'}")
    for key in tree.keys() & groups:
        check_group(tree[key], key, problems)
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
    quantized_weights_stay,
    processes_have_work,
    sharded_ranks_work_alike,
    one_process_draws,
    group_holds_a_comparison,
    overlong_fits_the_response,
    credit_suits_the_loss,
    correction_suits_the_loss,
    kept_tokens_are_known,
    groups_can_be_separate,
)
"""What must hold across the config; each returns one line, or None where all is well."""
